"""However a client calls its body, it is answered; Django would break at some names."""

from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.test import RequestFactory

from gateway.http.media_types import sanitize_content_type

ODD = [
    "application/json; charset=rot13",
    "application/json; charset=undefined",
    "text/plain; x*=none''a",
    "text/plain; x*=a; x*0=b",
    "text/plain; x*" + "9" * 5_000 + "=a",
    "multipart/form-data; boundary=x; x*=none''a",
    "application/x-www-form-urlencoded; charset=zlib",
]
FORM = "application/x-www-form-urlencoded"


def seen_as(media_type: str, path: str = "/admin/login/") -> str:
    """Return the media type that the application is shown."""
    shown: list[str] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        shown.append(environ["CONTENT_TYPE"])
        return []

    environ = {"CONTENT_TYPE": media_type, "PATH_INFO": path}
    sanitize_content_type(application)(environ, None)  # type: ignore[arg-type]
    return shown[0]


@pytest.mark.django_db  # A request looks after the connection that a test before it may have left.
@pytest.mark.parametrize("media_type", ODD, ids=lambda kind: kind[:40])
def test_a_media_type_that_cannot_be_read_is_no_error(media_type: str) -> None:
    environ = RequestFactory().get("/healthz?a=b").environ | {"CONTENT_TYPE": media_type}
    statuses: list[str] = []

    sanitize_content_type(WSGIHandler())(environ, lambda status, headers: statuses.append(status))

    assert statuses == ["200 OK"]


def test_the_forms_of_the_back_office_keep_theirs() -> None:
    assert seen_as(FORM) == FORM


@pytest.mark.parametrize("media_type", ["multipart/form-data; boundary=x", "multipart/mixed"])
def test_nothing_is_uploaded(media_type: str) -> None:
    assert seen_as(media_type) == ""


@pytest.mark.parametrize("path", ["/generate", "/admin", "//admin/", "/"])
def test_no_other_address_reads_forms(path: str) -> None:
    assert seen_as(FORM, path) == ""


def test_a_form_is_read_as_utf_8_whatever_it_says() -> None:
    assert seen_as(f"{FORM}; charset=rot13") == FORM
