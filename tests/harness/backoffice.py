"""Addresses and forms of the back-office, filled in and sent."""

from typing import Any
from uuid import uuid4

from django.contrib.auth.models import Permission, User
from django.test import Client

from accounts.models import Account
from billing.models import Entry

ACCOUNTS, KEYS, USERS = (
    "/admin/accounts/account/",
    "/admin/accounts/apikey/",
    "/admin/auth/user/",
)
PRICES, BUDGETS, ENTRIES, LIMIT_CHANGES = (
    "/admin/billing/modelprice/",
    "/admin/billing/budget/",
    "/admin/billing/entry/",
    "/admin/billing/limitchange/",
)
USAGE, HOLDS, DAYS = (
    "/admin/billing/tokenusage/",
    "/admin/billing/hold/",
    "/admin/billing/usagedaily/",
)


def text_of(page: Any) -> str:
    assert page.status_code == 200
    text: str = page.content.decode()
    return text


def staff_client(*permissions: str) -> Client:
    """Return a client of a staff user who has only these permissions."""
    user = User.objects.create_user("clerk", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def page_of(account: Account) -> str:
    return f"{ACCOUNTS}{account.pk}/"


def key_form(**fields: Any) -> dict[str, Any]:
    return {
        "name": "laptop",
        "scopes": ["infer", "usage"],
        "allowed_models": "",
        "expires": "90",
        "form_nonce": str(uuid4()),
        **fields,
    }


def issue(client: Client, account: Account, **fields: Any) -> Any:
    return client.post(f"{page_of(account)}issue-key/", key_form(**fields))


def add_credit(client: Client, account: Account, **fields: Any) -> Any:
    newest = Entry.objects.filter(account=account).order_by("-pk").first()
    after = newest.pk if newest else 0
    form = {"amount": "10.5", "kind": "top_up", "reason": "Invoice 7", "reference": "bank-7"}
    return client.post(f"{page_of(account)}add-credit/", form | {"after": after} | fields)


def schedule(client: Client, **fields: str) -> Any:
    form = {"model": "LLAMA3", "input_per_1k": "0.002", "output_per_1k": "", **fields}
    return client.post(f"{PRICES}add/", form)
