"""Each request carries one context, from the outermost middleware to the view."""

import socket
import time

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from rest_framework.request import Request

from gateway.http.context import RequestContext, context_of
from gateway.http.middleware import attach_context
from gateway.metering import NullMeter

pytestmark = pytest.mark.once  # It needs no database.


def context_seen_by_a_view(**environ: object) -> tuple[RequestContext, HttpResponse]:
    seen: list[RequestContext] = []

    def view(request: HttpRequest) -> HttpResponse:
        # As REST framework hands it to a view.
        seen.append(context_of(Request(request)))
        return HttpResponse()

    response = attach_context(view)(RequestFactory().get("/models", **environ))  # type: ignore[arg-type]
    assert isinstance(response, HttpResponse)
    return seen[0], response


def test_the_response_names_the_id_that_the_view_saw() -> None:
    context, response = context_seen_by_a_view()

    assert response["x-request-id"] == str(context.request_id)


def test_every_request_has_its_own_id_and_arrival() -> None:
    began = time.monotonic()
    first, _response = context_seen_by_a_view()
    second, _response = context_seen_by_a_view()

    assert first.request_id != second.request_id
    assert began <= first.received_at <= second.received_at


def test_the_context_holds_the_connection_that_gunicorn_hands_over() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        context, _response = context_seen_by_a_view(**{"gunicorn.socket": ours})

    assert context.client is ours


def test_without_billing_and_gunicorn_nothing_is_counted_or_watched() -> None:
    context, _response = context_seen_by_a_view()

    assert isinstance(context.meter, NullMeter) and context.client is None
