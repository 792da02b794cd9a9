"""List, show, pull and delete models."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from django.conf import settings
from django.http import HttpResponse, HttpResponseBase, JsonResponse
from rest_framework.request import Request

from accounts.models import Scope
from gateway import catalogue, names
from gateway.dialects import fields, ollama
from gateway.errors import BadRequest, Forbidden, ModelNotFound
from gateway.metering import Offer
from gateway.relay.chunk_stream import ChunkStream, Timeouts
from gateway.relay.encoded_response import EncodedResponse
from gateway.scheduling.inventory import inventory
from gateway.scheduling.remembered import Remembered
from gateway.upstream import protocol
from gateway.upstream.chunk import Chunk
from gateway.upstream.client import configured_client
from gateway.validation.bodies import read_object
from gateway.views.base import GatewayView
from gateway.views.responses import respond

T = TypeVar("T")

# A large model takes hours over a slow connection, and is verified for minutes without a line.
PULL_TIMEOUTS = Timeouts(read=1800.0, total=float("inf"))


class InventoryView(GatewayView):
    """A view that shows what the model server reports."""

    def latest(self, remembered: Remembered[T]) -> T:
        """Return the model server's last report; ask again if it is older than
        INVENTORY_SECONDS."""
        with self.track_client() as cancellation:
            return remembered.get(cancellation, settings.INVENTORY_SECONDS)


class ListingView(InventoryView):
    """The models on disk (`tags`) or in memory (`ps`) that the key may see."""

    route = "tags"
    required_scope = Scope.INFER

    def get(self, request: Request) -> HttpResponse:
        known = inventory()
        listing = self.latest(known.ps if self.route == "ps" else known.tags).listing
        offers = self.meter.offers(catalogue.names_of(listing))
        entries = catalogue.visible(listing, self.models.allowed, offers)
        note = {} if entries else self.why_empty()
        return JsonResponse(self.present(entries, offers) | note)

    def present(self, entries: list[dict[str, Any]], offers: Mapping[str, Offer]) -> dict[str, Any]:
        return {"models": entries}

    def why_empty(self) -> dict[str, Any]:
        """Return the fields that explain an empty list; only our own REST family has some."""
        return {}


class PricedListingView(ListingView):
    """`/models`: the same models with their prices."""

    def present(self, entries: list[dict[str, Any]], offers: Mapping[str, Offer]) -> dict[str, Any]:
        return {"models": [catalogue.priced(entry, offers) for entry in entries]}

    def why_empty(self) -> dict[str, Any]:
        allowed = self.key.allowed_models
        if allowed:
            names = ", ".join(allowed[:10])
            return {"note": f"This key may use {names} only, and none is installed with a price."}
        return {"note": "No model is installed that has a price."}


class OpenAIListingView(ListingView):
    """`/v1/models`."""

    def present(self, entries: list[dict[str, Any]], offers: Mapping[str, Offer]) -> dict[str, Any]:
        return {"object": "list", "data": [catalogue.openai_model(entry) for entry in entries]}


class OpenAIModelView(InventoryView):
    """`/v1/models/{model}`, whose name may hold slashes and a colon."""

    required_scope = Scope.INFER

    def get(self, request: Request, model: str) -> HttpResponse:
        name = catalogue.canonical_name(model)
        listing = self.latest(inventory().tags).listing
        offers = self.meter.offers([name])
        for entry in catalogue.visible(listing, self.models.allowed, offers):
            if catalogue.name_of(entry) == name:
                return JsonResponse(catalogue.openai_model(entry))
        raise ModelNotFound(model)


class ShowView(InventoryView):
    """`/api/show`: a model's details; customers do not get the server's own."""

    required_scope = Scope.INFER

    def post(self, request: Request) -> HttpResponse:
        spelled = fields.model_of(read_object(request))
        model = catalogue.canonical_name(spelled)
        allowed = self.models.allowed
        allowed.check(model)
        if not allowed.sees_all and model not in self.meter.offers([model]):
            raise ModelNotFound(spelled)
        facts = self.latest(inventory().facts_of(model))
        return JsonResponse(catalogue.shown(facts, allowed))


class VersionView(InventoryView):
    """`/api/version`: the model server's version; clients adapt to it."""

    required_scope = Scope.INFER

    def get(self, request: Request) -> HttpResponse:
        version = self.latest(inventory().version).get("version", "")
        return JsonResponse({"version": str(version)})


# --- Operators ------------------------------------------------------------------------------------


class PullView(GatewayView):
    """Download a model: a stream of progress lines, or one response at the end."""

    streams_by_default = True
    required_scope = Scope.MODELS

    def post(self, request: Request) -> HttpResponseBase:
        body = read_object(request)
        model = pullable_name(fields.model_of(body))
        streamed = fields.wants_stream(body, default=self.streams_by_default)
        chunks = ChunkStream(
            partial(configured_client().ask, "pull", pull_body(model)),
            partial(read_progress, model),
            self.track_client(),
            timeouts=PULL_TIMEOUTS,
            may_just_end=False,
        )
        encoded = EncodedResponse(chunks, ollama.ProgressRenderer(self.request_id))
        encoded.start()
        return respond(encoded, streamed=streamed)


def pull_body(model: str) -> dict[str, Any]:
    """Return the body of the model server's pull route, with `insecure` for a registry without
    TLS."""
    body: dict[str, Any] = {"model": model, "stream": True}
    if names.parse(model).host in settings.PULL_INSECURE_REGISTRIES:
        body["insecure"] = True
    return body


def read_progress(model: str, line: bytes) -> Chunk:
    """Read one line of a pull. After the last one the inventory asks again, so that the model is
    listed at once."""
    chunk = protocol.read_progress(model, line)
    if chunk.done:
        inventory().forget()
    return chunk


class DeleteView(GatewayView):
    """Delete a model, named in the URL or in the body."""

    required_scope = Scope.MODELS

    def delete(self, request: Request, model: str = "") -> HttpResponse:
        spelled = model or fields.model_of(read_object(request))
        model = catalogue.canonical_name(spelled)
        with self.track_client() as cancellation:
            configured_client().fetch("delete", {"model": model}, cancellation=cancellation)
        inventory().forget()
        return self.deleted(spelled)

    def deleted(self, spelled: str) -> HttpResponse:
        """Return an empty response, as Ollama does."""
        return HttpResponse(status=200)


class RestDeleteView(DeleteView):
    """`DELETE /models/{model}`: the response names the deleted model."""

    def deleted(self, spelled: str) -> HttpResponse:
        return JsonResponse({"status": "deleted", "model": spelled})


def pullable_name(spelled: str) -> str:
    """Return the canonical name of a model to pull; raise BadRequest or Forbidden.

    A name with a host makes the model server connect to that host, so only the hosts in
    PULL_REGISTRIES are accepted.
    """
    try:
        name = names.parse(spelled)
    except names.InvalidName as error:
        raise BadRequest(str(error)) from None
    if name.host not in settings.PULL_REGISTRIES:
        allowed = ", ".join(settings.PULL_REGISTRIES)
        raise Forbidden(f"Models are pulled from {allowed} only, not from '{name.host}'.")
    return str(name)
