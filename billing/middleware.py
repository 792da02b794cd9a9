"""Give each request a meter, and release a hold that no response used."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

from billing.meter import LedgerMeter
from gateway.http.context import context_of

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def attach_meter(get_response: GetResponse) -> GetResponse:
    def middleware(request: HttpRequest) -> HttpResponseBase:
        context = context_of(request)
        context.meter = meter = LedgerMeter(context.request_id)
        response = get_response(request)
        if not response.streaming:
            meter.abandon()
        return response

    return middleware
