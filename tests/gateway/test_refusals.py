"""What fits no column or no form is refused with a 4xx, before and after the login."""

import io
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client

from gateway.http.early_checks import MAX_FORM_BYTES
from tests.harness.callers import Caller

NUL_COOKIE = 'sessionid="\\000aaaaaaaaaaaaaaaa"'
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def browser(db: None) -> Client:
    return Client(raise_request_exception=False)


@pytest.mark.parametrize("path", ["/admin/", "/admin/login/", "/healthz", "/usage", "/nowhere"])
@pytest.mark.parametrize("cookie", [NUL_COOKIE, "sessionid=a\0b", 'csrftoken="\\000"'])
def test_a_nul_in_a_cookie_is_a_400(browser: Client, path: str, cookie: str) -> None:
    answer = browser.get(path, headers={"cookie": cookie})

    assert answer.status_code == 400 and answer["x-request-id"]
    assert path.startswith("/admin/") or answer.json()["code"] == "invalid_request"


@pytest.mark.parametrize("query", ["q=%00", "a%00b=c", "q=a%%00", "%00"])
def test_a_nul_in_a_query_is_a_400(browser: Client, alice: Caller, query: str) -> None:
    assert browser.get(f"/admin/login/?{query}").status_code == 400
    assert alice.client.get(f"/usage/history?{query}", headers=alice.headers).status_code == 400


def test_a_percent_sign_before_two_noughts_is_none(alice: Caller) -> None:
    answer = alice.client.get("/usage?note=100%2500", headers=alice.headers)

    assert answer.status_code == 200


@pytest.mark.parametrize("body", [b"username=%00&password=b", b"username=\0"])
def test_a_nul_in_a_form_is_a_400(browser: Client, body: bytes) -> None:
    answer = browser.post("/admin/login/", body, FORM)

    assert answer.status_code == 400


def test_a_large_form_is_not_read(browser: Client) -> None:
    form = b"username=" + b"a" * MAX_FORM_BYTES
    answer = browser.post("/admin/login/", form, FORM)

    assert answer.status_code == 413
    assert answer.wsgi_request.META["wsgi.input"].read() == form


def test_a_form_whose_length_is_no_number_is_a_400(browser: Client) -> None:
    assert browser.post("/admin/login/", b"", FORM, CONTENT_LENGTH="abc").status_code == 400


def test_a_file_is_refused_before_any_of_it_is_kept(browser: Client, admin_client: Client) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\ndata\r\n--x--\r\n'
    for client in (browser, admin_client):
        answer = client.post("/admin/login/", part, "multipart/form-data; boundary=x")
        assert answer.status_code == 400


LISTS = re.findall(r"\w+/\w+", "accounts/account accounts/apikey auth/user auth/group "
                   "billing/budget billing/entry billing/hold billing/modelprice "
                   "billing/tokenusage billing/usagedaily")  # fmt: skip
HUGE = "99999999999999999999"
ODD = [f"account__exact={HUGE}", f"key__exact={HUGE}", f"id__exact={HUGE}", f"user__exact={HUGE}"]
ODD += ["account__exact=abc", "is_active__exact=abc", f"p={HUGE}", f"o={HUGE}", "all=x"]
ODD += [f"_to_field=id&_popup={HUGE}", "e=1", f"q={HUGE}", "created_at__gte=x", "state=x"]
ODD += ["last_name__range=x", "name__range=x", "id__range=1"]


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("query", ODD)
def test_no_filter_of_a_list_makes_a_5xx(admin_client: Client, path: str, query: str) -> None:
    admin_client.raise_request_exception = False

    assert admin_client.get(f"/admin/{path}/?{query}").status_code < 500


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("row", ["abc", HUGE, "", "-1"])
@pytest.mark.parametrize("action", ["delete_selected", "revoke", "export", "nonsense"])
def test_no_row_of_an_action_makes_a_5xx(
    admin_client: Client, alice: Caller, path: str, row: str, action: str
) -> None:
    admin_client.raise_request_exception = False
    names = action_names(admin_client, path) or [action]
    for name in names:
        chosen = {"action": name, "_selected_action": row, "index": "0"}
        assert admin_client.post(f"/admin/{path}/", chosen).status_code < 500


def action_names(admin_client: Client, path: str) -> list[str]:
    page = admin_client.get(f"/admin/{path}/").content.decode()
    select = page.partition('<select name="action"')[2].partition("</select>")[0]
    return re.findall(r'<option value="(\w+)"', select)


ADD = ["account=abc", f"account={HUGE}", "key=abc", "unit=nonsense", "limit=x", "effective_from=x"]
ADD += ["model=" + "x" * 5000, "input_per_1k=NaN", "nonsense=1"]


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("query", ADD)
def test_no_link_to_an_empty_form_makes_a_5xx(admin_client: Client, path: str, query: str) -> None:
    admin_client.raise_request_exception = False

    assert admin_client.get(f"/admin/{path}/add/?{query}").status_code < 500


def test_a_link_fills_a_form_with_what_fits(admin_client: Client, alice: Caller) -> None:
    page = admin_client.get(f"/admin/billing/budget/add/?account={alice.account.pk}&limit=7")

    assert alice.account.name in page.content.decode() and 'value="7"' in page.content.decode()


PAGES = [f"/admin/{path}/{row}/{page}/" for path in LISTS[:5] for row in ("abc", HUGE, "%25")
         for page in ("change", "history", "delete")]  # fmt: skip
PAGES += [f"/admin/{path}/1/{page}/?_to_field=" for path in LISTS for page in ("change", "delete")]
PAGES += [f"/admin/r/{HUGE}/{HUGE}/", "/admin/jsi18n/?x=1", "/admin/autocomplete/",
          f"/admin/autocomplete/?app_label=billing&model_name=budget&field_name=account&term={HUGE}"
          ]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_no_page_of_the_back_office_makes_a_5xx(admin_client: Client, path: str) -> None:
    admin_client.raise_request_exception = False

    assert admin_client.get(path).status_code < 500


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the log's handler writes."""
    [handler] = [each for each in logging.getLogger().handlers if each.name == "stderr"]
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    before = handler.setStream(written)
    yield written
    handler.setStream(before)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/admin/accounts/account/?" + "a=1&" * 1_001, 400),
        ("/admin/billing/entry/?x%0aFORGED%1b[2J=1", 400),
        ("/admin/billing/entry/?_to_field=digest", 400),
    ],
)
def test_a_suspicious_request_is_one_line_of_the_log(
    admin_client: Client, log: io.StringIO, path: str, status: int
) -> None:
    assert admin_client.get(path).status_code == status

    [line] = log.getvalue().splitlines()
    assert " WARNING django.security." in line and line.isprintable()


def test_what_is_no_misfit_stays_a_500(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("backoffice.admin.prices.unpriced_models", broken)
    admin_client.raise_request_exception = False

    assert admin_client.get("/admin/billing/modelprice/").status_code == 500
