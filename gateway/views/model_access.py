"""Which models the key of a request may use, and which of them are installed."""

from collections.abc import Callable, Collection
from typing import cast

from rest_framework.request import Request

from accounts.models import ApiKey, Scope
from gateway import catalogue
from gateway.catalogue import AllowedModels, allowed_models
from gateway.errors import GatewayError, ModelNotFound
from gateway.http.context import RequestContext, context_of
from gateway.metering import NotPriced
from gateway.scheduling.inventory import inventory
from gateway.upstream.cancellation import track_client

# How long a listing is waited for that only improves a response. It is then given without one.
LISTING_SECONDS = 1.0


class ModelAccess:
    """The models of one request's key."""

    def __init__(self, key: ApiKey, context: RequestContext) -> None:
        self._key = key
        self._context = context
        self.allowed: AllowedModels = allowed_models(
            key.allowed_models, sees_all=key.allows(Scope.MODELS)
        )

    def require_installed(self, model: str, spelled: str) -> None:
        """Raise ModelNotFound for a model that is not installed, or NotPriced: a key that cannot
        use a model does not learn whether it is installed.

        It is called before the meter is opened, so no hold and no row is written for such a model.
        """
        known = inventory()
        if known.installed(model):
            return
        with track_client(self._context.client, self._key.pk) as cancellation:
            if known.find(model, cancellation):
                return
        if model in self._context.meter.offers([model]):
            raise ModelNotFound(spelled)
        raise NotPriced(spelled, self.similar_to(model))

    def similar_to(self, model: str) -> str | None:
        """Return the usable model whose name resembles a misspelt one; None if there is none, or
        if the model server does not answer within LISTING_SECONDS."""
        names = [name for name in self.installed() or [] if self.allowed.has(name)]
        return catalogue.similar_name(model, self._context.meter.offers(names))

    def installed(self) -> Collection[str] | None:
        """Return the canonical names of the installed models; None if the model server does not
        answer within LISTING_SECONDS."""
        with track_client(self._context.client, self._key.pk) as cancellation:
            try:
                return inventory().names(cancellation, LISTING_SECONDS)
            except GatewayError:
                return None


def usable_models(request: Request) -> Callable[[str], bool]:
    """Return a test for model names: allowed for the request's key, and installed as far as the
    model server answers within LISTING_SECONDS."""
    models = ModelAccess(cast(ApiKey, request.auth), context_of(request))
    installed = models.installed()
    return lambda name: models.allowed.has(name) and (installed is None or name in installed)
