"""What pages ask of the model server."""

from django import template

from gateway import catalogue, upstream
from gateway.errors import GatewayError

register = template.Library()


@register.simple_tag
def installed_models() -> list[str] | None:
    """Return the canonical names of the models that can be served; None if nobody can tell."""
    try:
        listing = upstream.fetch("tags", seconds=2)
    except GatewayError:
        return None
    everything = catalogue.shelf([], sees_all=True)
    local = catalogue.visible(listing, everything, {})
    return sorted(catalogue.names_of({"models": local}))
