"""Ask a model. Each view reads a request, asks one thing and answers."""

import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from typing import Any

from django.conf import settings
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.views import APIView

from accounts.models import ApiKey, Scope
from gateway import catalogue
from gateway.catalogue import AllowedModels, canonical_name, shelf
from gateway.dialects import OLLAMA
from gateway.dialects.base import Dialect, Renderer
from gateway.errors import ClientDisconnected, GatewayError, ModelNotFound
from gateway.http import idempotency
from gateway.metering import (
    Demand,
    Idempotency,
    Meter,
    NotPriced,
    NullMeter,
    Operation,
    Receipt,
    Usage,
)
from gateway.relay import embedding_batches
from gateway.relay.metered_stream import MeteredStream, Read, Send
from gateway.relay.token_counter import TokenCounter
from gateway.scheduling import hosts
from gateway.scheduling.inventory import effective_context, inventory
from gateway.upstream import protocol
from gateway.upstream.cancellation import Cancellation, has_disconnected, track_client
from gateway.validation import isolation, load_requests, policy
from gateway.validation.bodies import reading
from gateway.validation.inference_request import Prompt
from gateway.validation.rules import Limits
from gateway.validation.schemas import SchemaBounds

# For what is a courtesy to the client: it does not wait for a model server that is busy or gone.
LISTING_SECONDS = 1.0


class InferenceView(APIView):
    """One address where a model answers: which family speaks, what is asked."""

    dialect: Dialect = OLLAMA
    operation = Operation.GENERATE
    required_scope = Scope.INFER

    def post(self, request: Request) -> HttpResponseBase:
        can_pay = partial(meter_of(request).require_credit, key_of(request).account_id)
        with reading(request._request, can_pay) as body:
            prompt = self.dialect.parse(self.operation, body)
            model = canonical_name(prompt.model)
            allowed_models_of(request).check(model)
            renderer = self.dialect.renderer(prompt, request_id(request))
            context = effective_context(model)
            job = policy.build(prompt, model, limits(), salt_of(request), context)
            named = idempotency.of(request._request, body)
        if load_requests.is_load_request(prompt):
            return self.answer_load(request, model, prompt, renderer)
        if has_disconnected_client(request):
            # It left in the queue for a thread: nothing is held and no row is written.
            raise ClientDisconnected()
        require_installed(request, prompt, model)
        meter = meter_of(request)
        parts = embedding_batches.parts_of(job.body, settings.EMBED_BATCH_INPUTS)
        try:
            meter.open(demand(key_of(request), prompt, model, job, named))
        except NotPriced:
            raise NotPriced(prompt.model, model_alike(request, model)) from None
        stream = MeteredStream(
            meter=meter,
            counter=TokenCounter(
                job.prompt_estimate,
                job.completion_bound,
                prompt_bound=job.prompt_bound,
                has_format="format" in job.body,
            ),
            renderer=renderer,
            cancellation=cancellation_of(request),
            parts=len(parts),
        )
        stream.begin(
            *way_to_ask(prompt, parts, model),
            keep_alive=keepalive_interval(prompt, renderer),
        )
        return respond(stream, prompt, renderer)

    def answer_load(
        self, request: Request, model: str, prompt: Prompt, renderer: Renderer
    ) -> HttpResponse:
        """Answer a request without a prompt, as `ollama run` and `ollama stop` send one. It loads
        or unloads the model where the key may; a customer's does nothing."""
        offer = meter_of(request).offers([model]).get(model)
        if key_of(request).allows(Scope.MODELS):
            load_or_unload(request, prompt, model)
        elif offer is None:
            raise ModelNotFound(prompt.model)
        else:
            require_installed(request, prompt, model)
        chunk = load_requests.loaded(prompt, timezone.now().isoformat())
        receipt = Receipt(Usage(), Decimal(0), offer.currency) if offer else None
        return HttpResponse(renderer.whole([chunk], receipt), content_type="application/json")


def load_or_unload(request: Request, prompt: Prompt, model: str) -> None:
    """Do what an operator's request without a prompt asks for; raise GatewayError."""
    loads = hosts.host().loads
    with tracking(request) as cancellation:
        if load_requests.is_unload_request(prompt):
            loads.unload(model, cancellation)
        else:
            loads.load(model, cancellation)


def way_to_ask(prompt: Prompt, parts: list[dict[str, Any]], model: str) -> tuple[Send, Read]:
    """Return how the model server is asked, in one call for each part, and how a line of its answer
    is read."""
    send = partial(hosts.host().send, prompt.operation)
    read = partial(protocol.read_chunk, prompt.operation, model=model)
    if len(parts) == 1:
        return partial(send, parts[0]), read
    parted = embedding_batches.EmbedParts(parts, send, read)
    return parted.send, parted.read


# --- Which models there are -----------------------------------------------------------------------


def require_installed(request: Request, prompt: Prompt, model: str) -> None:
    """Raise ModelNotFound for a model that the model server does not have, or NotPriced: who cannot
    use it does not learn whether it is there. So nothing is held for it, and no row written."""
    known = inventory()
    if known.installed(model):
        return
    with tracking(request) as cancellation:
        if known.find(model, cancellation):
            return
    if model in meter_of(request).offers([model]):
        raise ModelNotFound(prompt.model)
    raise NotPriced(prompt.model, model_alike(request, model))


def model_alike(request: Request, model: str) -> str | None:
    """Return the usable model whose name a misspelt one resembles; None if there is none, or the
    model server cannot say soon."""
    names = [name for name in installed_models(request) or [] if may_use(request, name)]
    return catalogue.alike(model, meter_of(request).offers(names))


def usable_models(request: Request) -> Callable[[str], bool]:
    """Return what tells whether a key can use a model: it is allowed, and installed as far as the
    model server can say soon."""
    installed = installed_models(request)
    return lambda name: may_use(request, name) and (installed is None or name in installed)


def may_use(request: Request, model: str) -> bool:
    return allowed_models_of(request).has(model)


def installed_models(request: Request) -> Collection[str] | None:
    """Return the canonical names of the models that run here; None if nobody can tell soon."""
    with tracking(request) as cancellation:
        try:
            return inventory().names(cancellation, LISTING_SECONDS)
        except GatewayError:
            return None


def keepalive_interval(prompt: Prompt, renderer: Renderer) -> float | None:
    """Return after how many seconds of silence a client gets a sign of life; None for never."""
    return settings.KEEP_ALIVE_SECONDS if prompt.stream and renderer.supports_keepalive else None


class WholeResponse(HttpResponse):
    """One JSON body; what room it takes is given back when it has been sent."""

    def __init__(self, stream: MeteredStream) -> None:
        super().__init__(stream.whole(), content_type="application/json")
        self._release = stream.release

    def close(self) -> None:
        super().close()
        self._release()


def respond(stream: MeteredStream, prompt: Prompt, renderer: Renderer) -> HttpResponseBase:
    """Return the answer as it comes, or whole."""
    if not prompt.stream:
        return WholeResponse(stream)
    response = StreamingHttpResponse(stream, content_type=renderer.content_type)
    # A proxy in front that gathers a stream hides both a slow reader and one that left.
    response["X-Accel-Buffering"] = "no"
    response["Cache-Control"] = "no-store"
    return response


def demand(
    key: ApiKey, prompt: Prompt, model: str, job: policy.Job, named: Idempotency | None
) -> Demand:
    return Demand(
        account_id=key.account_id,
        key_id=key.pk,
        operation=prompt.operation,
        model=model,
        prompt_bound=job.prompt_bound,
        prompt_estimate=job.prompt_estimate,
        completion_bound=job.completion_bound,
        idempotency=named,
    )


def limits() -> Limits:
    return Limits(
        max_prompt_bytes=settings.MAX_PROMPT_BYTES,
        max_images=settings.MAX_IMAGES,
        max_image_bytes=settings.MAX_IMAGE_BYTES,
        max_embed_inputs=settings.MAX_EMBED_INPUTS,
        default_completion_tokens=settings.DEFAULT_COMPLETION_TOKENS,
        max_completion_tokens=settings.MAX_COMPLETION_TOKENS,
        schema=SchemaBounds(
            max_bytes=settings.MAX_SCHEMA_BYTES,
            max_depth=settings.MAX_SCHEMA_DEPTH,
            max_enum_values=settings.MAX_SCHEMA_ENUM_VALUES,
            max_branches=settings.MAX_SCHEMA_BRANCHES,
            max_optional_properties=settings.MAX_SCHEMA_OPTIONAL_PROPERTIES,
            max_empty_repetitions=settings.MAX_SCHEMA_EMPTY_REPETITIONS,
        ),
    )


# --- What a request carries ---------------------------------------------------------------------


def meter_of(request: Request) -> Meter:
    """Return the meter a middleware handed over; without billing nothing is counted."""
    meter: Meter = getattr(request._request, "meter", None) or NullMeter()
    return meter


def key_of(request: Request) -> ApiKey:
    """Return the key that `accounts.permissions` has let in."""
    key: Any = request.auth
    return key  # type: ignore[no-any-return]


def salt_of(request: Request) -> str:
    """Return what isolates the prompts of the request's account; empty where they need not be."""
    account = key_of(request).account
    own = account.isolate_prompts
    wanted = settings.ISOLATE_PROMPTS if own is None else own
    # None: nobody has decided, so nothing is given away.
    return "" if wanted is False else isolation.salt_of(account.pk, settings.SECRET_KEY)


def allowed_models_of(request: Request) -> AllowedModels:
    key = key_of(request)
    return shelf(key.allowed_models, sees_all=key.allows(Scope.MODELS))


def request_id(request: Request) -> str:
    return str(getattr(request._request, "id", ""))


def has_disconnected_client(request: Request) -> bool:
    """Tell whether the request's client is gone already."""
    client = client_of(request)
    return client is not None and has_disconnected(client.fileno())


def cancellation_of(request: Request) -> Cancellation:
    """Watch the request's client."""
    return track_client(client_of(request), key_of(request).pk)


@contextmanager
def tracking(request: Request) -> Iterator[Cancellation]:
    """Watch the request's client while something short is waited for."""
    cancellation = cancellation_of(request)
    try:
        yield cancellation
    finally:
        cancellation.detach()


def client_of(request: Request) -> socket.socket | None:
    """Return the client's connection; only gunicorn hands it over."""
    return request._request.META.get("gunicorn.socket")
