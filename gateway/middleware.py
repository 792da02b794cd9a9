"""The outermost steps: every answer carries the id of its request, and what a browser may do."""

import time
from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

from gateway.request_ids import new_request_id

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def request_id(get_response: GetResponse) -> GetResponse:
    """Give each request an id of ours: its hold and its usage row bear the same one."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        began = time.monotonic()
        request.id = new_request_id()  # type: ignore[attr-defined]
        response = get_response(request)
        response["x-request-id"] = str(request.id)  # type: ignore[attr-defined]
        if request.path.startswith("/v1/"):
            add_what_sdks_read(request.path, response, time.monotonic() - began)
        return response

    return middleware


# The admin's scripts and styles are files of its own; what somebody wrote into a name never runs.
ADMIN_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
# Answers are data: whatever a model wrote, a browser that shows it loads and runs nothing.
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"


def content_policy(get_response: GetResponse) -> GetResponse:
    """Tell browsers what the page may load and run."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        found = request.resolver_match
        in_admin = found is not None and found.app_name == "admin"
        response["Content-Security-Policy"] = ADMIN_POLICY if in_admin else DATA_POLICY
        return response

    return middleware


def add_what_sdks_read(path: str, response: HttpResponseBase, seconds: float) -> None:
    """Add the headers that OpenAI's and Anthropic's clients look for."""
    if path.startswith("/v1/messages"):
        response["request-id"] = response["x-request-id"]
    else:
        # Until the answer began: a stream goes on after this.
        response["openai-processing-ms"] = str(round(seconds * 1000))
    if response.status_code in (402, 429) and not response.has_header("Retry-After"):
        # Credit and caps do not come back by waiting, and these clients would try again.
        response["x-should-retry"] = "false"
