"""The outermost steps: every answer carries the id of its request, and what a browser may do."""

import time
from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase, HttpResponsePermanentRedirect
from django.middleware.common import CommonMiddleware

from gateway.http.request_ids import new_request_id

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def request_id(get_response: GetResponse) -> GetResponse:
    """Give each request an id of ours: its hold and its usage row bear the same one."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        began = time.monotonic()
        request.id = new_request_id()  # type: ignore[attr-defined]
        response = get_response(request)
        response["x-request-id"] = str(request.id)  # type: ignore[attr-defined]
        if request.path.startswith("/v1/"):
            add_sdk_headers(request.path, response, time.monotonic() - began)
        return response

    return middleware


# The admin's scripts and styles are files of its own; what somebody wrote into a name never runs.
ADMIN_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
# Answers are data: whatever a model wrote, a browser that shows it loads and runs nothing.
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
# A load balancer asks by address, whatever name customers use; nothing of a host is answered here.
PROBES = ("/healthz", "/readyz")


class CheckedHost(CommonMiddleware):
    """Django's own step that refuses a foreign Host, except for the probes of load balancers."""

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        return None if request.path in PROBES else super().process_request(request)


def content_policy(get_response: GetResponse) -> GetResponse:
    """Tell browsers what the page may load and run, and caches to keep no answer.

    A page that is wider than data says so itself. A cache that several people share knows nothing
    of `x-api-key`, and would hand one customer's answer to another.
    """

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        found = request.resolver_match
        in_admin = found is not None and found.app_name == "admin"
        policy = ADMIN_POLICY if in_admin else DATA_POLICY
        response.headers.setdefault("Content-Security-Policy", policy)
        if not in_admin:  # Its pages say it themselves, and its static files may be kept.
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    return middleware


def add_sdk_headers(path: str, response: HttpResponseBase, seconds: float) -> None:
    """Add the headers that OpenAI's and Anthropic's clients look for."""
    if path.startswith("/v1/messages"):
        response["request-id"] = response["x-request-id"]
    else:
        # Until the answer began: a stream goes on after this.
        response["openai-processing-ms"] = str(round(seconds * 1000))
    if response.status_code in (402, 429) and not response.has_header("Retry-After"):
        # Credit and caps do not come back by waiting, and these clients would try again.
        response["x-should-retry"] = "false"
