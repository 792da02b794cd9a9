"""Requests to the admin with something wrong in them: URLs, queries, forms, cookies. Pure.

As in `fuzz`, every request follows from its seed alone. Placeholders stand for what only a database
knows, until the request is sent: ROW for the number of a row, SESSION for the cookie of a login.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

from django.contrib import admin
from django.urls import URLResolver

from tests.faults import hostile_inputs
from tests.faults.fuzz import Dice, Route, Sent, change_headers, change_method

FORM = (b"Content-Type", b"application/x-www-form-urlencoded")
# A CSRF secret that Django accepts in the cookie and in the form.
TOKEN = "a" * 32
ROW, SESSION = "ROW", b"SESSION"
Fields = dict[str, str]


# --- Addresses ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """A page of the admin as the URLconf has it; `model` is the model that it shows, if any."""

    path: str
    model: str = ""

    @property
    def parameters(self) -> list[str]:
        """Return the query parameters of a page: those of every list, and its own filters."""
        return [*PARAMETERS, *(FILTERS[self.model] if self.model else ())]


def pages(resolver: URLResolver, prefix: str = "/") -> Iterator[Page]:
    for entry in resolver.url_patterns:
        path = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from pages(entry, path)
        elif path.startswith("/admin"):
            model = re.match(r"/admin/(\w+/\w+)/", path)
            yield Page(path, model[1] if model and model[1] in FILTERS else "")


def filters_of(model_admin: Any) -> list[str]:
    listed = model_admin.list_filter
    named = [f"{one}__exact" if isinstance(one, str) else one.parameter_name for one in listed]
    columns = [field.name for field in model_admin.opts.concrete_fields]
    looked_up = [f"{name}{lookup}" for name in columns for lookup in LOOKUPS]
    return [*(named * 4), *(list(getattr(model_admin, "linked_by", ())) * 4), *looked_up]


PARAMETERS = (
    *("q", "p", "o", "e", "all", "_to_field", "_popup", "_changelist_filters", "_facets", "day"),
    *("next", "term", "app_label", "model_name", "field_name", "id", "pk__in", "id__exact", ""),
)
LOOKUPS = ("", "__exact", "__in", "__isnull", "__gte", "__lt", "__year", "__regex", "__range")
FILTERS = {
    str(each.opts.label_lower).replace(".", "/"): filters_of(each)
    for each in admin.site._registry.values()
}

# --- Values -------------------------------------------------------------------------------------

VALUES = (
    *("", " ", "0", "1", "-1", "+1", "abc", "None", "null", "true", "NaN", "Infinity", "1e309"),
    *("2147483648", "9223372036854775807", "9223372036854775808", "9" * 20, "-" + "9" * 20),
    *("9" * 400, "9" * 4_301, "1." + "9" * 50, "0.0000000000001", "1e-400", "1_000", "0x10", "٣"),
    *("1,2,abc", "1," * 3_000, ROW, f"{ROW},{ROW}", f"{ROW}.0", f" {ROW}", "-1.2.-3", "..", "%"),
    *("2026-01-31", "2026-02-30", "0001-01-01", "9999-12-31", "9999-12-31T23:59:59.999999"),
    *("0001-01-01 00:00:00", "2026-11-24T25:00", "10000-01-01", "today", "-2026-01-01"),
    *("01234567-89ab-7def-8123-456789abcdef", "01234567-89ab-7def-8123", "{" + "0" * 32 + "}"),
    *("\0", "a\0b", "'", '"', "\\", "' OR 1=1 --", "%00", "%s", "_", "(", "[", "*", "<script>"),
    *(
        "é",
        "日本",
        "😀",
        "\u202e",
        "\ud800",
        "\ufeff",
        "\r\nX: y",
        "\x1b[2J",
        "a" * 256,
        "a" * 5_000,
    ),
    *("accounts", "billing", "auth", "account", "apikey", "budget", "user", "key", "owner"),
    *("/admin/", "//evil.example", "javascript:x", "delete_selected", "revoke", "total", "money"),
    *("llama3", "llama3:latest", "on", "owner", "_popup=1&_to_field=digest", "q=%00&p=x", "x" * 90),
)
ROWS = (
    *("", "0", "-1", "abc", "9" * 20, "_5F", "_00", "_ZZ", "1.0", "٣", "a/b", "%00", "%FF", "add"),
    *("é", "\ud800", "x" * 3_000, "01234567-89ab-7def-8123-456789abcdef", "1&x=1", "1#x", " 1"),
)
SESSIONS = (
    *(b'"\\000aaaaaaaaaaaaaaaa"', b"a" * 32, b"\0" * 32, b"'", b'"', b"x" * 20_000, b"%00", b""),
    *(b"\xff" * 32, b"\xe2\x80\xae", b'"\\777"', SESSION + b"; sessionid=x", b'"' + SESSION + b'"'),
)
TOKENS = (b"a" * 32, b"a" * 64, b'"\\000"', b"\0" * 32, b'"', b"x" * 20_000, b"\xff", b"", b"=;=")
MORE = (
    b"",
    b"messages=x",
    b"messages=[]",
    b"messages=W10:x:y",
    b'messages="\\000"',
    b"=",
    b";" * 900,
)


def value(dice: Dice) -> str:
    return dice.choice(VALUES)


def encoded(pairs: list[tuple[str, str]]) -> str:
    return "&".join(f"{escaped(name)}={escaped(said)}" for name, said in pairs)


def escaped(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")


# --- Forms --------------------------------------------------------------------------------------


class FormReader(HTMLParser):
    """Reads the fields of a page, each with a value that may be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: Fields = {}
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: said or "" for name, said in attrs}
        if tag in ("input", "textarea") and found.get("name"):
            self.fields[found["name"]] = found.get("value", "")
        elif tag == "select":
            self._select = found.get("name", "")
        elif tag == "option" and self._select and found.get("value"):
            self.fields[self._select] = found["value"]


def fields_of(html: str) -> Fields:
    reader = FormReader()
    reader.feed(html)
    return reader.fields


def form(fields: Fields, dice: Dice) -> bytes:
    """Return the fields of a page, one to three of them with wrong values."""
    sent = {**fields, "csrfmiddlewaretoken": TOKEN} if dice.random() < 0.95 else dict(fields)
    pairs = list(sent.items())
    for _ in range(dice.choice((0, 1, 1, 2, 3))):
        name = dice.choice([*fields, *EXTRA_FIELDS])
        pairs = [pair for pair in pairs if pair[0] != name or dice.random() < 0.2]
        pairs += [(name, value(dice))] * dice.choice((0, 1, 1, 1, 2))
    return encoded(pairs).encode()


EXTRA_FIELDS = (
    *("action", "_selected_action", "select_across", "index", "_save", "_continue", "_saveasnew"),
    *("_addanother", "_popup", "_to_field", "post", "next", "username", "password", "form_nonce"),
    *("form-TOTAL_FORMS", "form-INITIAL_FORMS", "form-MAX_NUM_FORMS", "form-0-id"),
)

# --- Requests -----------------------------------------------------------------------------------


def headers(cookie: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"Host", b"localhost"), (b"Cookie", cookie))


def visit(page: Page, query: str = "", row: str = ROW, *, logged_in: bool = True) -> Sent:
    """Return the request for a page, as a browser sends it."""
    path = re.sub(r"<[^>]+>", lambda _: row, page.path)
    path = re.sub(r"\^\(\?P<app_label>(\w+).*", r"\1/", path).replace("(?P<url>.*)$", row)
    cookie = f"csrftoken={TOKEN}".encode()
    if logged_in:
        cookie += b"; sessionid=" + SESSION
    target = path + (f"?{query}" if query else "")
    return Sent(Route(page.path, "GET"), "GET", target.encode(), headers(cookie))


def fuzzed(page: Page, fields: Fields, dice: Dice) -> Sent:
    """Return a request for a page with a few things wrong in it; `fields` are the page's fields."""
    row = ROW if dice.random() < 0.6 else escaped(dice.choice(ROWS))
    query = odd_query(page, dice) if dice.random() < 0.6 else ""
    sent = visit(page, query, row, logged_in=dice.random() < 0.8)
    if dice.random() < 0.5:
        body = form(fields, dice)
        sent = replace(sent, method="POST", headers=(*sent.headers, FORM), body=body)
    if dice.random() < 0.2:
        kept = [header for header in sent.headers if header[0] != b"Cookie"]
        sent = replace(sent, headers=(*kept, (b"Cookie", odd_cookie(dice))))
    if dice.random() < 0.15:
        sent = change_headers(sent, dice)
    return change_method(sent, dice) if dice.random() < 0.03 else sent


def odd_cookie(dice: Dice) -> bytes:
    session = SESSION if dice.random() < 0.4 else dice.choice(SESSIONS)
    token, more = dice.choice(TOKENS), dice.choice(MORE)
    return b"; ".join([b"sessionid=" + session, b"csrftoken=" + token, more])


def odd_query(page: Page, dice: Dice) -> str:
    if dice.random() < 0.05:
        return str(dice.choice(hostile_inputs.QUERIES).decode("latin-1"))
    pairs = dict(LOOKED_UP) if "autocomplete" in page.path else {}
    for _ in range(dice.choice((1, 1, 2, 3))):
        pairs[dice.choice([*pairs] * 3 or page.parameters)] = value(dice)
    return encoded(list(pairs.items()))


# Queries of the admin's own pages to the autocomplete view.
LOOKED_UP = {"app_label": "billing", "model_name": "budget", "field_name": "account", "term": "a"}
