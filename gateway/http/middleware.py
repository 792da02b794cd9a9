"""The outermost middleware: the request's context, its id in the response, and what a browser may
do with the response."""

import time
from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase, HttpResponsePermanentRedirect
from django.middleware.common import CommonMiddleware

from gateway.dialects import dialect_of
from gateway.http import context

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def attach_context(get_response: GetResponse) -> GetResponse:
    """Give each request its context, and each response the request's id."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        attached = context.attach(request)
        response = get_response(request)
        request_id = str(attached.request_id)
        response["x-request-id"] = request_id
        seconds = time.monotonic() - attached.received_at
        headers = dialect_of(request.path).headers(response.status_code, request_id, seconds)
        if response.has_header("Retry-After"):
            headers.pop("x-should-retry", None)
        for name, value in headers.items():
            response[name] = value
        return response

    return middleware


# The admin's scripts and styles are static files. A script in somebody's name never runs.
ADMIN_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
# Responses are data: a browser that shows one loads and runs nothing of what a model wrote.
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
# Load balancers probe by IP address, not by a name in ALLOWED_HOSTS. These routes do not use Host.
PROBES = ("/healthz", "/readyz")


class CheckedHost(CommonMiddleware):
    """Django's own middleware that rejects a foreign Host, except on PROBES."""

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        return None if request.path in PROBES else super().process_request(request)


def content_policy(get_response: GetResponse) -> GetResponse:
    """Tell browsers what the page may load and run, and caches to store no response.

    A view that needs a wider policy sets its own. A shared cache does not vary by `x-api-key`, so
    it would give one customer's response to another.
    """

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        match = request.resolver_match
        in_admin = match is not None and match.app_name == "admin"
        policy = ADMIN_POLICY if in_admin else DATA_POLICY
        response.headers.setdefault("Content-Security-Policy", policy)
        if not in_admin:  # Its pages set it themselves, and its static files may be cached.
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    return middleware
