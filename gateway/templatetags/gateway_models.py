"""What pages ask of the model server."""

from django import template

from gateway.errors import GatewayError
from gateway.scheduling.inventory import inventory
from gateway.upstream.cancellation import Cancellation

register = template.Library()

# How long a page waits for the model server.
SECONDS = 2.0


@register.simple_tag
def installed_models() -> list[str] | None:
    """Return the canonical names of the models that can be served; None if nobody can tell."""
    try:
        names = inventory().names(Cancellation(None), SECONDS)
    except GatewayError:
        return None
    return None if names is None else sorted(names)
