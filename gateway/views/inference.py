"""The inference routes: parse a request, admit it, ask the model server, respond."""

from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils import timezone
from rest_framework.request import Request

from accounts.models import Account, Scope
from gateway.catalogue import canonical_name
from gateway.dialects import OLLAMA
from gateway.dialects.base import Dialect, Renderer, SupportsKeepalive
from gateway.errors import ClientDisconnected, ModelNotFound
from gateway.http import idempotency
from gateway.metering import Demand, Idempotency, NotPriced, Operation, Receipt, Usage
from gateway.relay import embedding_batches
from gateway.relay.chunk_stream import ChunkStream, Read, Send
from gateway.relay.encoded_response import EncodedResponse
from gateway.relay.metered_chunks import MeteredChunks
from gateway.relay.token_counter import TokenCounter
from gateway.scheduling import hosts
from gateway.scheduling.inventory import effective_context
from gateway.upstream import protocol
from gateway.upstream.cancellation import has_disconnected
from gateway.validation import isolation, load_requests, policy
from gateway.validation.bodies import reading
from gateway.validation.inference_request import InferenceRequest
from gateway.validation.rules import Limits
from gateway.validation.schemas import SchemaBounds
from gateway.views.base import GatewayView
from gateway.views.responses import respond


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was parsed and checked, and what writes its response."""

    inference: InferenceRequest
    # The canonical name.
    model: str
    upstream: policy.UpstreamRequest
    renderer: Renderer
    idempotency: Idempotency | None


class InferenceView(GatewayView):
    """One inference route, by its client family and its operation."""

    dialect: Dialect = OLLAMA
    operation = Operation.GENERATE
    required_scope = Scope.INFER

    def post(self, request: Request) -> HttpResponseBase:
        call = self.parse(request)
        if load_requests.is_load_request(call.inference):
            return self.load_or_unload(call)
        self.admit(call)
        return respond(self.ask(call), streamed=call.inference.stream)

    # --- Parse ---

    def parse(self, request: HttpRequest) -> Call:
        """Read and check the body; raise BadRequest, Forbidden or what `reading` raises."""
        can_pay = partial(self.meter.require_credit, self.key.account_id)
        with reading(request, can_pay) as body:
            inference = self.dialect.parse(self.operation, body)
            model = canonical_name(inference.model)
            self.models.allowed.check(model)
            context = effective_context(model)
            upstream = policy.build(inference, model, limits(), salt_of(self.key.account), context)
            return Call(
                inference=inference,
                model=model,
                upstream=upstream,
                renderer=self.dialect.renderer(inference, self.request_id),
                idempotency=idempotency.of(request, body),
            )

    # --- Admit ---

    def admit(self, call: Call) -> None:
        """Open the meter; raise Refused, ModelNotFound or ClientDisconnected."""
        if self.context.client and has_disconnected(self.context.client.fileno()):
            # It left while the request waited for a thread. No hold and no row is written.
            raise ClientDisconnected()
        self.models.require_installed(call.model, call.inference.model)
        try:
            self.meter.open(self.demand(call))
        except NotPriced:
            similar = self.models.similar_to(call.model)
            raise NotPriced(call.inference.model, similar) from None

    def demand(self, call: Call) -> Demand:
        return Demand(
            account_id=self.key.account_id,
            key_id=self.key.pk,
            operation=call.inference.operation,
            model=call.model,
            prompt_bound=call.upstream.prompt_bound,
            prompt_estimate=call.upstream.prompt_estimate,
            completion_bound=call.upstream.completion_bound,
            idempotency=call.idempotency,
        )

    # --- Ask ---

    def ask(self, call: Call) -> EncodedResponse:
        """Ask the model server and wait for its first chunk; raise GatewayError."""
        parts = embedding_batches.parts_of(call.upstream.body, settings.EMBED_BATCH_INPUTS)
        keeps_alive = call.inference.stream and isinstance(call.renderer, SupportsKeepalive)
        cancellation = self.track_client()
        chunks = ChunkStream(
            *sender_and_reader(call, parts),
            cancellation,
            keepalive_seconds=settings.KEEP_ALIVE_SECONDS if keeps_alive else None,
        )
        counter = counter_of(call.upstream)
        streamed = call.inference.delivers_chunks
        metered = MeteredChunks(chunks, cancellation, self.meter, counter, streamed=streamed)
        encoded = EncodedResponse(metered, call.renderer, len(parts))
        encoded.start()
        return encoded

    # --- Requests that only load or unload a model ---

    def load_or_unload(self, call: Call) -> HttpResponse:
        """Answer a request without a prompt, as `ollama run` and `ollama stop` send one. It loads
        or unloads the model if the key has the scope `models`; else it does nothing."""
        offer = self.meter.offers([call.model]).get(call.model)
        if self.key.allows(Scope.MODELS):
            self.change_memory(call)
        elif offer is None:
            raise ModelNotFound(call.inference.model)
        else:
            self.models.require_installed(call.model, call.inference.model)
        chunk = load_requests.loaded(call.inference, timezone.now().isoformat())
        receipt = Receipt(Usage(), Decimal(0), offer.currency) if offer else None
        body = call.renderer.body([chunk], receipt)
        return HttpResponse(body, content_type="application/json")

    def change_memory(self, call: Call) -> None:
        loads = hosts.host().loads
        is_unload = load_requests.is_unload_request(call.inference)
        with self.track_client() as cancellation:
            (loads.unload if is_unload else loads.load)(call.model, cancellation)


def sender_and_reader(call: Call, parts: list[dict[str, Any]]) -> tuple[Send, Read]:
    """Return what asks the model server, in one call for each part, and what reads a line of its
    response."""
    send = partial(hosts.host().ask, call.inference.operation)
    read = partial(protocol.read_chunk, call.inference.operation, model=call.model)
    if len(parts) == 1:
        return partial(send, parts[0]), read
    parted = embedding_batches.EmbedParts(parts, send, read)
    return parted.send, parted.read


def counter_of(upstream: policy.UpstreamRequest) -> TokenCounter:
    return TokenCounter(
        upstream.prompt_estimate,
        upstream.completion_bound,
        prompt_bound=upstream.prompt_bound,
        has_format="format" in upstream.body,
    )


def salt_of(account: Account) -> str:
    """Return what isolates an account's prompts from those of others; empty for no isolation."""
    own = account.isolate_prompts
    isolated = settings.ISOLATE_PROMPTS if own is None else own
    # None: nobody has decided, so prompts are isolated.
    return "" if isolated is False else isolation.salt_of(account.pk, settings.SECRET_KEY)


def limits() -> Limits:
    """Return the limits that the settings set for a request."""
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
