"""List, show, pull and delete models."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from django.conf import settings
from django.http import HttpResponse, HttpResponseBase, JsonResponse
from rest_framework.request import Request
from rest_framework.views import APIView

from accounts.models import Scope
from gateway import catalogue, names
from gateway.dialects import fields, ollama
from gateway.errors import BadRequest, Forbidden, ModelNotFound
from gateway.metering import NullMeter, Offer, Operation
from gateway.relay.metered_stream import MeteredStream, Timeouts
from gateway.relay.token_counter import TokenCounter
from gateway.scheduling.inventory import inventory
from gateway.scheduling.remembered import Remembered
from gateway.upstream import client, protocol
from gateway.upstream.chunk import Chunk
from gateway.validation.bodies import read_object
from gateway.validation.inference_request import Prompt
from gateway.views.inference import (
    allowed_models_of,
    cancellation_of,
    key_of,
    meter_of,
    request_id,
    respond,
    tracking,
)

T = TypeVar("T")

# A large model takes hours over a thin line, and minutes of silence to be verified.
PULL_TIMEOUTS = Timeouts(silence=1800.0, total=float("inf"))


class ListingView(APIView):
    """The models on disk (`tags`) or in memory (`ps`), as far as the key may see them."""

    route = "tags"
    required_scope = Scope.INFER

    def get(self, request: Request) -> HttpResponse:
        known = inventory()
        listing = latest(request, known.ps if self.route == "ps" else known.tags).listing
        offers = meter_of(request).offers(catalogue.names_of(listing))
        entries = catalogue.visible(listing, allowed_models_of(request), offers)
        note = {} if entries else self.why_empty(request)
        return JsonResponse(self.present(entries, offers) | note)

    def present(self, entries: list[dict[str, Any]], offers: Mapping[str, Offer]) -> dict[str, Any]:
        return {"models": entries}

    def why_empty(self, request: Request) -> dict[str, Any]:
        """Return what an empty list has besides; the clients of other families want none of it."""
        return {}


class PricedListingView(ListingView):
    """`/models`: the same models with their prices."""

    def present(self, entries: list[dict[str, Any]], offers: Mapping[str, Offer]) -> dict[str, Any]:
        return {"models": [catalogue.priced(entry, offers) for entry in entries]}

    def why_empty(self, request: Request) -> dict[str, Any]:
        allowed = key_of(request).allowed_models
        if allowed:
            names = ", ".join(allowed[:10])
            return {"note": f"This key may use {names} only, and none is installed with a price."}
        return {"note": "No model is installed that has a price."}


class OpenAIListingView(ListingView):
    """`/v1/models`."""

    def present(self, entries: list[dict[str, Any]], offers: Mapping[str, Offer]) -> dict[str, Any]:
        return {"object": "list", "data": [catalogue.openai_model(entry) for entry in entries]}


class OpenAIModelView(APIView):
    """`/v1/models/{model}`, whose name may hold slashes and a colon."""

    required_scope = Scope.INFER

    def get(self, request: Request, model: str) -> HttpResponse:
        name = catalogue.canonical_name(model)
        listing = latest(request, inventory().tags).listing
        offers = meter_of(request).offers([name])
        for entry in catalogue.visible(listing, allowed_models_of(request), offers):
            if catalogue.name_of(entry) == name:
                return JsonResponse(catalogue.openai_model(entry))
        raise ModelNotFound(model)


class ShowView(APIView):
    """`/api/show`: a model's facts, without what is the operator's own."""

    required_scope = Scope.INFER

    def post(self, request: Request) -> HttpResponse:
        spelled = fields.model_of(read_object(request._request))
        model = catalogue.canonical_name(spelled)
        shelf = allowed_models_of(request)
        shelf.check(model)
        if not shelf.sees_all and model not in meter_of(request).offers([model]):
            raise ModelNotFound(spelled)
        facts = latest(request, inventory().facts_of(model))
        return JsonResponse(catalogue.shown(facts, shelf))


class VersionView(APIView):
    """`/api/version`: the model server's version, which clients adapt to."""

    required_scope = Scope.INFER

    def get(self, request: Request) -> HttpResponse:
        said = latest(request, inventory().version)
        return JsonResponse({"version": str(said.get("version", ""))})


def latest(request: Request, what: Remembered[T]) -> T:
    """Return what the model server says now, or said a moment ago, to a client that waits."""
    with tracking(request) as cancellation:
        return what.get(cancellation, settings.INVENTORY_SECONDS)


# --- Operators ------------------------------------------------------------------------------------


class PullView(APIView):
    """Download a model: progress line by line, or one answer at the end."""

    streams_by_default = True
    required_scope = Scope.MODELS

    def post(self, request: Request) -> HttpResponseBase:
        body = read_object(request._request)
        model = pullable_name(fields.model_of(body))
        stream_wanted = fields.wants_stream(body, default=self.streams_by_default)
        prompt = Prompt(Operation.GENERATE, model, stream_wanted)
        renderer = ollama.ProgressRenderer(prompt, request_id(request))
        stream = MeteredStream(
            meter=NullMeter(),
            counter=TokenCounter(0, 0),
            renderer=renderer,
            cancellation=cancellation_of(request),
            patience=PULL_TIMEOUTS,
            may_just_end=False,
        )
        stream.begin(
            partial(client.send, "pull", pull_body(model)),
            partial(read_progress, model),
        )
        return respond(stream, prompt, renderer)


def pull_body(model: str) -> dict[str, Any]:
    """Return what the model server is asked to pull, and whether without TLS."""
    body: dict[str, Any] = {"model": model, "stream": True}
    if names.parse(model).host in settings.PULL_INSECURE_REGISTRIES:
        body["insecure"] = True
    return body


def read_progress(model: str, line: bytes) -> Chunk:
    """Read one line of a pull; a model that was pulled is seen at once."""
    chunk = protocol.read_progress(model, line)
    if chunk.done:
        inventory().forget()
    return chunk


class DeleteView(APIView):
    """Delete a model, named in the address or in the body."""

    required_scope = Scope.MODELS

    def delete(self, request: Request, model: str = "") -> HttpResponse:
        spelled = model or fields.model_of(read_object(request._request))
        model = catalogue.canonical_name(spelled)
        with tracking(request) as cancellation:
            client.fetch("delete", {"model": model}, cancellation=cancellation)
        inventory().forget()
        return self.deleted(spelled)

    def deleted(self, spelled: str) -> HttpResponse:
        """Return an empty answer, as Ollama does."""
        return HttpResponse(status=200)


class RestDeleteView(DeleteView):
    """`DELETE /models/{model}`: says what was deleted."""

    def deleted(self, spelled: str) -> HttpResponse:
        return JsonResponse({"status": "deleted", "model": spelled})


def pullable_name(spelled: str) -> str:
    """Return the canonical name of a model to pull; raise BadRequest or Forbidden.

    A name with a host makes the model server ask that host, so hosts are on a list.
    """
    try:
        name = names.parse(spelled)
    except names.InvalidName as error:
        raise BadRequest(str(error)) from None
    if name.host not in settings.PULL_REGISTRIES:
        allowed = ", ".join(settings.PULL_REGISTRIES)
        raise Forbidden(f"Models are pulled from {allowed} only, not from '{name.host}'.")
    return str(name)
