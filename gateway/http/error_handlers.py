"""Render every error as JSON in the format of the client family whose route was called."""

import logging
from typing import Any

from django.core.exceptions import SuspiciousOperation
from django.db import InterfaceError, InternalError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.views import defaults
from rest_framework import exceptions as drf

from gateway.dialects import dialect_of
from gateway.errors import (
    BadRequest,
    DatabaseDown,
    Forbidden,
    GatewayError,
    MethodNotAllowed,
    NotFound,
    Unauthenticated,
)
from gateway.http.context import context_of

logger = logging.getLogger(__name__)

BY_STATUS: dict[int, type[GatewayError]] = {
    401: Unauthenticated,
    403: Forbidden,
    405: MethodNotAllowed,
}


def handle(exc: Exception, context: dict[str, Any]) -> HttpResponseBase:
    """Answer an exception of a REST framework view."""
    return render(as_gateway_error(exc), context["request"])


def as_gateway_error(exc: Exception) -> GatewayError:
    """Turn any exception into a GatewayError. Unexpected ones are logged, and the client gets no
    detail."""
    if isinstance(exc, GatewayError):
        return exc
    if isinstance(exc, Http404):
        return NotFound()
    if isinstance(exc, SuspiciousOperation):
        return BadRequest()
    if isinstance(exc, drf.APIException):
        return BY_STATUS.get(exc.status_code, BadRequest)(_first_sentence(exc.detail))
    # InternalError: the database is a read-only standby.
    if isinstance(exc, (OperationalError, InterfaceError, InternalError)):
        logger.error("The database failed: %s: %s", type(exc).__name__, _first_line(exc))
        return DatabaseDown()
    logger.error("Unexpected error", exc_info=exc)
    return GatewayError()


def _first_line(exc: Exception) -> str:
    """Return the first line of a driver's error; later lines may quote the statement."""
    return str(exc).strip().partition("\n")[0][:300]


def _first_sentence(detail: Any) -> str:
    if isinstance(detail, dict):
        field, inner = next(iter(detail.items()))
        return f"{field}: {_first_sentence(inner)}"
    return _first_sentence(detail[0]) if isinstance(detail, list) else str(detail)


def render(error: GatewayError, request: HttpRequest) -> HttpResponse:
    """Return the response for an error, with the headers that its class sets."""
    body = dialect_of(request.path).error(error, str(context_of(request).request_id))
    response = HttpResponse(body, content_type="application/json", status=error.status)
    if error.retry_after is not None:
        response["Retry-After"] = str(error.retry_after)
    if error.never_retry:
        response["x-should-retry"] = "false"
    if error.status == 401:
        response["WWW-Authenticate"] = "Bearer"
    return response


# --- Django's own handlers: routes that do not exist, and errors outside of a view ---------------


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    if _is_page(request):
        return defaults.bad_request(request, exception)
    return render(BadRequest(), request)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    if _is_page(request):
        return defaults.permission_denied(request, exception)
    return render(Forbidden("Not allowed."), request)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    if _is_page(request):
        return defaults.page_not_found(request, exception)
    return render(NotFound(), request)


def server_error(request: HttpRequest) -> HttpResponseBase:
    if _is_page(request):
        return defaults.server_error(request)
    return render(GatewayError(), request)


def _is_page(request: HttpRequest) -> bool:
    return request.path.startswith("/admin/")
