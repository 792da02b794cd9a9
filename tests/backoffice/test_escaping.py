"""The pages of the back-office escape every name, and load only files of the gateway."""

import html
import re
from datetime import timedelta
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any, cast

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone

from accounts import keys
from accounts.models import Account, Membership
from billing import ledger
from billing.models import Budget, Entry, Hold, ModelPrice, UsageDaily
from billing.reservations import Settlement
from gateway.http.request_ids import new_request_id
from gateway.metering import CountSource, Demand, Operation, Outcome, Usage
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller

KEYS = "/admin/accounts/apikey/"
EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}"


class Page(HTMLParser):
    """Collects the scripts and files that a page would run or load from elsewhere."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        self.foreign: list[Any] = []
        self.feed(response.content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        runs = tag == "script" and "src" not in given and given.get("type") != "application/json"
        handler = [name for name in given if name.startswith("on") or name == "style"]
        link = given.get("src", "/") + given.get("href", "/")
        loads = tag in ("script", "img", "link", "iframe") and not link.startswith(("/", "?"))
        if runs or handler or loads or "javascript:" in link or tag in ("style", "base", "object"):
            self.foreign.append((tag, given))


@pytest.fixture
def evil(db: None) -> Caller:
    """A customer with a script in every text field."""
    owner = User.objects.create(username=EVIL[:150], email=EVIL, first_name=EVIL, is_staff=True)
    Group.objects.create(name=EVIL)
    account = Account.objects.create(name=EVIL)
    # With a second owner, so that the page that deletes the first one is shown.
    for user in (owner, User.objects.create_user("second")):
        Membership.objects.create(account=account, user=user, role="owner")
    for unit, window in (("money", "total"), ("tokens", "month")):
        ledger.open_budget(account, Budget.Unit(unit), Budget.Window(window))
    ledger.set_limit(Budget.objects.get(unit="tokens"), 1000)
    key, secret = keys.issue(account, name=EVIL, allowed_models=[EVIL], scopes=[EVIL, "infer"])
    ledger.post(account, Decimal(5), kind=Entry.Kind.GRANT, reason=EVIL, by=owner)
    add_usage(Caller(key, secret), owner)
    return Caller(key, secret)


def add_usage(caller: Caller, by: User) -> None:
    """Add a hold, a usage row and a day of a model with a script in its name."""
    now = timezone.now()
    price = ModelPrice.objects.create(
        model=EVIL,
        effective_from=now,
        prompt_price=1,
        completion_price=1,
        created_by=by,
        author=EVIL,
    )
    demand = Demand(caller.account.pk, caller.key.pk, cast(Operation, EVIL[:20]), EVIL, 9, 9, 9)
    for settled in (True, False):
        lease = timedelta(seconds=30)
        made = ledger.hold(new_request_id(), demand, price, worker=EVIL, lease=lease)
        if settled:
            usage = Usage(1, 1, CountSource.UPSTREAM, started=True)
            ledger.settle(Settlement(made, usage, Outcome.COMPLETE, billed=True))


def crawl(browser: Client, *start: str) -> dict[str, Any]:
    """Return every page of the back-office that links lead to, by URL."""
    waiting = ["/admin/", *start]
    pages_by_url: dict[str, Any] = {}
    while waiting and len(pages_by_url) < 150:
        url = waiting.pop()
        pages_by_url[url] = browser.get(url)
        if pages_by_url[url].status_code == 200 and not pages_by_url[url].streaming:
            page = pages_by_url[url].content.decode()
            links = [html.unescape(link) for link in re.findall(r'href="(/admin/[^"#]*)"', page)]
            waiting += [
                link for link in links if link not in {*pages_by_url, *waiting, "/admin/logout/"}
            ]
    return pages_by_url


@pytest.fixture
def pages(admin_client: Client, evil: Caller, ollama: FakeOllama) -> dict[str, Any]:
    hold = Hold.objects.latest("pk").pk
    return crawl(admin_client, f"/admin/billing/hold/{hold}/change/", "/admin/password_change/")


def test_a_script_in_a_name_is_escaped_on_every_page(pages: dict[str, Any]) -> None:
    shown = [url for url, page in pages.items() if b"&lt;script&gt;" in page.content]

    assert len(pages) > 30 and UsageDaily.objects.exists()
    for part in ("account", "apikey", "modelprice", "entry", "budget", "hold", "tokenusage"):
        assert [url for url in shown if f"/{part}/" in url], part
    for url, page in pages.items():
        assert page.status_code == 200, url
        assert not Page(page).foreign, url
        assert b"}49" not in page.content and b">49" not in page.content


def test_a_script_in_a_form_is_escaped_in_the_response(admin_client: Client, evil: Caller) -> None:
    account = f"/admin/accounts/account/{evil.account.pk}/"
    issued = {"name": EVIL, "scopes": ["infer"], "expires": "90", "allowed_models": EVIL}
    nonce = {"form_nonce": "0190b8a2-7c3e-7d4a-9f10-2b3c4d5e6f70", "allowed_models": ""}
    responses = [
        admin_client.post(f"{account}issue-key/", issued),
        admin_client.post(f"{account}issue-key/", {**issued, **nonce}),
        admin_client.post(f"{account}issue-key/", {**issued, **nonce}),
        admin_client.post(f"{account}add-credit/", {"amount": EVIL, "kind": EVIL, "reason": EVIL}),
        admin_client.post(KEYS, {"action": "revoke_selected", "_selected_action": evil.key.pk}),
        admin_client.post("/admin/accounts/account/add/", {"name": EVIL, "username": EVIL}),
        admin_client.post("/admin/billing/modelprice/add/", {"model": EVIL, "input_per_1k": EVIL}),
        admin_client.get("/admin/billing/modelprice/", {"q": EVIL}),
        admin_client.get("/admin/billing/tokenusage/", {"q": EVIL, "day": EVIL}),
        Client(headers={"User-Agent": EVIL}).post("/admin/login/", {"username": EVIL}),
        Client().get("/admin/login/", {"next": EVIL}),
    ]

    for response in responses:
        assert not Page(response).foreign


# --- Content-Security-Policy ----------------------------------------------------------------------


def policy_of(response: Any) -> dict[str, str]:
    parts = response["Content-Security-Policy"].split("; ")
    return {name: rule for name, _space, rule in (part.partition(" ") for part in parts)}


def test_every_page_loads_only_our_own_files(pages: dict[str, Any], client: Client) -> None:
    for page in [*pages.values(), client.get("/admin/login/"), client.get("/admin/")]:
        policy = policy_of(page)
        assert policy["default-src"] == policy["form-action"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
        assert "unsafe" not in page["Content-Security-Policy"] and "script-src" not in policy
        assert page["X-Frame-Options"] == "DENY"
        assert page["X-Content-Type-Options"] == "nosniff"


@pytest.mark.usefixtures("priced")
def test_responses_of_the_api_allow_no_scripts(alice: Caller, ollama: FakeOllama) -> None:
    body = {"model": "llama3", "prompt": "hi"}
    responses = [
        *(alice.post("/generate", {**body, "stream": stream}) for stream in (True, False)),
        *(alice.get(path) for path in ("/usage", "/models", "/nowhere", "/", "/healthz")),
        *(Client().get(path) for path in ("/usage", "/static/nothing.js")),
    ]

    for response in responses:
        assert policy_of(response) == {"default-src": "'none'", "frame-ancestors": "'none'"}
        assert response["X-Content-Type-Options"] == "nosniff"
