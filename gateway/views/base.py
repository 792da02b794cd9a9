"""What every view of an API route knows of its request."""

from functools import cached_property
from typing import cast

from rest_framework.views import APIView

from accounts.models import ApiKey
from gateway.http.context import RequestContext, context_of
from gateway.metering import Meter
from gateway.upstream.cancellation import Cancellation, track_client
from gateway.views.model_access import ModelAccess


class GatewayView(APIView):
    """A view behind an API key. Each subclass names its `required_scope`."""

    @cached_property
    def context(self) -> RequestContext:
        return context_of(self.request)

    @cached_property
    def key(self) -> ApiKey:
        """The key that `accounts.permissions` has admitted."""
        return cast(ApiKey, self.request.auth)

    @cached_property
    def models(self) -> ModelAccess:
        return ModelAccess(self.key, self.context)

    @property
    def meter(self) -> Meter:
        return self.context.meter

    @property
    def request_id(self) -> str:
        return str(self.context.request_id)

    def track_client(self) -> Cancellation:
        """Watch the client until the Cancellation is detached."""
        return track_client(self.context.client, self.key.pk)
