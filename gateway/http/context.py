"""What the gateway attaches to a request: its id, its arrival, its client's socket, its meter."""

import socket
import time
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID

from django.http import HttpRequest

from gateway.http.request_ids import new_request_id
from gateway.metering import Meter, NullMeter


@dataclass(slots=True)
class RequestContext:
    """The facts of one request that views, error handlers and billing share."""

    # The id of the request's hold and of its usage row, too.
    request_id: UUID = field(default_factory=new_request_id)
    # By time.monotonic().
    received_at: float = field(default_factory=time.monotonic)
    # None where the server does not hand the connection over; only gunicorn does.
    client: socket.socket | None = None
    # Without billing nothing is counted.
    meter: Meter = field(default_factory=NullMeter)


class GatewayRequest(HttpRequest):
    """A request that has passed `gateway.http.middleware.attach_context`."""

    gateway: RequestContext


def attach(request: HttpRequest) -> RequestContext:
    """Give a request its context and return it."""
    context = RequestContext(client=request.META.get("gunicorn.socket"))
    cast(GatewayRequest, request).gateway = context
    return context


def context_of(request: HttpRequest) -> RequestContext:
    """Return the context of a request, or of the one that REST framework wraps."""
    return cast(GatewayRequest, request).gateway
