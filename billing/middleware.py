"""Hand each request a meter, and give back a hold that no answer used. That is all of it."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

from billing.meter import LedgerMeter

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def attach_meter(get_response: GetResponse) -> GetResponse:
    def middleware(request: HttpRequest) -> HttpResponseBase:
        meter = LedgerMeter(request.id)  # type: ignore[attr-defined]
        request.meter = meter  # type: ignore[attr-defined]
        response = get_response(request)
        if not response.streaming:
            meter.abandon()
        return response

    return middleware
