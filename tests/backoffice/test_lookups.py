"""The URL of a list accepts the lookups of its links, and none of a hidden column."""

import html
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.auth.models import User
from django.test import Client, RequestFactory
from django.urls import reverse

from tests.harness.callers import Caller

ADMINS = [*admin.site._registry.values()]


def list_of(model_admin: Any) -> str:
    return reverse(f"admin:{model_admin.opts.app_label}_{model_admin.opts.model_name}_changelist")


def shown(model_admin: Any) -> set[str]:
    """Return the names of the columns that a list or a page shows, filters or accepts in links."""
    request = RequestFactory().get("/")
    request.user = User(is_superuser=True)
    fields = flatten_fieldsets(model_admin.get_fieldsets(request, model_admin.model()))
    links = [lookup.partition("__")[0] for lookup in getattr(model_admin, "linked_by", ())]
    columns = [*model_admin.list_display, *model_admin.list_filter, *fields, *links]
    names = {str(getattr(each, "__name__", each)) for each in columns}
    return {name.removeprefix("number_") for name in names} - {"password"}


def hidden(model_admin: Any) -> Iterator[str]:
    for field in model_admin.opts.concrete_fields:
        if not field.primary_key and field.name not in shown(model_admin):
            yield field.name


def test_hidden_columns_include_digests_and_passwords() -> None:
    hidden_by_model = {model_admin.opts.label: set(hidden(model_admin)) for model_admin in ADMINS}

    assert {"digest", "token_key", "form_nonce"} <= hidden_by_model["accounts.ApiKey"]
    assert "password" in hidden_by_model["auth.User"]


@pytest.mark.parametrize("model_admin", ADMINS, ids=str)
@pytest.mark.parametrize("kind", ["startswith", "gte", "exact", "regex", "isnull"])
def test_no_list_accepts_a_lookup_of_a_hidden_column(
    admin_client: Client, alice: Caller, model_admin: Any, kind: str
) -> None:
    for name in hidden(model_admin):
        for lookup in (name, f"{name}__{kind}"):
            response = admin_client.get(list_of(model_admin), {lookup: "1"})
            assert response.status_code == 400, lookup


@pytest.mark.parametrize(
    "lookup",
    [
        *("digest__startswith", "token_key__startswith", "name__regex", "user__password__gt"),
        *("account__name__contains", "account__keys__digest__gt", "scopes__0", "id__gt", "pk__in"),
    ],
)
def test_the_list_of_keys_rejects_lookups(admin_client: Client, alice: Caller, lookup: str) -> None:
    address = "/admin/accounts/apikey/"

    assert admin_client.get(address, {lookup: alice.key.token_key}).status_code == 400


@pytest.mark.parametrize("lookup", ["auth_token_set__digest__gt", "password__startswith"])
def test_the_list_of_users_rejects_lookups(
    admin_client: Client, alice: Caller, lookup: str
) -> None:
    assert admin_client.get("/admin/auth/user/", {lookup: "a"}).status_code == 400


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("model_admin", ADMINS, ids=str)
def test_every_link_of_a_list_still_works(
    admin_client: Client, alice: Caller, model_admin: Any
) -> None:
    page = admin_client.get(list_of(model_admin)).content.decode()

    for query in re.findall(r'href="(\?[^"]+)"', page):
        assert admin_client.get(list_of(model_admin) + html.unescape(query)).status_code == 200, (
            query
        )
