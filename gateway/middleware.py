"""The outermost step: every answer carries the id of its request."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

from gateway.request_ids import new_request_id

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def request_id(get_response: GetResponse) -> GetResponse:
    """Give each request an id of ours: its hold and its usage row bear the same one."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        request.id = new_request_id()  # type: ignore[attr-defined]
        response = get_response(request)
        response["x-request-id"] = str(request.id)  # type: ignore[attr-defined]
        if request.path.startswith("/v1/messages"):
            # The name under which Anthropic's clients look for it.
            response["request-id"] = response["x-request-id"]
        return response

    return middleware
