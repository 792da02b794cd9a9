"""What is refused before anything of Django reads it: large forms, and NUL in what it looks up."""

from collections.abc import Callable

from django.core.exceptions import ValidationError
from django.db import DataError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, UnreadablePostError

from gateway.errors import BadRequest, BodyTimeout, GatewayError
from gateway.http.error_handlers import bad_request, render
from gateway.http.media_types import has_forms
from gateway.validation.bodies import declared_length

# The largest form of the back-office has a few hundred boxes.
MAX_FORM_BYTES = 100_000


class RefuseEarly:
    """Refuse what would be read by a form parser or looked up in the database as it came.

    PostgreSQL stores no NUL, and Django asks it for the session of whatever cookie there is.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        try:
            refuse_nul(request)
            if has_forms(request.path_info):
                refuse_large_form(request)
        except GatewayError as error:
            return page(error) if has_forms(request.path_info) else render(error, request)
        return self.get_response(request)

    def process_exception(
        self, request: HttpRequest, exception: Exception
    ) -> HttpResponseBase | None:
        """Answer 400 to a value that fits no column, which Django looks up as it came."""
        if not has_forms(request.path_info):
            return None
        misfit: tuple[type[Exception], ...] = (OverflowError, DataError)
        if "_selected_action" in request.POST:
            misfit += (ValueError, ValidationError)  # A row's id that is none.
        return bad_request(request, exception) if isinstance(exception, misfit) else None


def refuse_nul(request: HttpRequest) -> None:
    """Raise BadRequest for a NUL in the query or a cookie, where `\\000` in quotes is one.

    In an address there is no harm: no view has one with it.
    """
    query, cookies = request.META.get("QUERY_STRING", ""), request.META.get("HTTP_COOKIE", "")
    if "%00" in query or "\\000" in cookies or "\0" in query + cookies:
        raise BadRequest("The request holds a NUL.")


def refuse_large_form(request: HttpRequest) -> None:
    """Raise TooLarge before a large form is read, BadRequest for a NUL in a small one."""
    if not declared_length(request.META.get("CONTENT_LENGTH") or "", MAX_FORM_BYTES):
        return
    try:
        body = request.body
    except (UnreadablePostError, OSError) as error:
        raise BodyTimeout() from error
    if b"%00" in body or b"\0" in body:
        raise BadRequest("The form holds a NUL.")


def page(error: GatewayError) -> HttpResponse:
    return HttpResponse(f"{error.message}\n", "text/plain; charset=utf-8", error.status)
