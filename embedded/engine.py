"""Run the model on llama.cpp. No other module imports it, and only an engine that starts does."""

import json
import os
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from tempfile import TemporaryDirectory
from threading import Lock
from time import monotonic, sleep
from typing import Any

from embedded.model import EMBED_NAME, NAME, EngineMissing, Model
from embedded.slots import ClientDisconnected, Slots

# Tokens of one request, prompt and response together. The model was trained on 8192; every token
# costs 23 KB of memory in every slot.
CONTEXT = 2048

# A text to embed must fit one batch of llama.cpp. A batch of 2048 would take 600 MB, and five
# seconds during which it cannot be cancelled.
EMBED_CONTEXT = 512

# Prompt tokens processed between two checks of the client: an eighth of a second on two cores.
BATCH = 64

ERRORS_ONLY = -1
# How often one text is cut before its request is rejected.
MAX_CUTS = 4
TOO_LONG = "the input length exceeds the context length"

# Tells whether the response is still wanted.
IsWanted = Callable[[], bool]


class EngineError(Exception):
    """The engine rejects this call; `status` is the HTTP status to respond with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class PromptTooLong(EngineError):
    """The prompt has more tokens than the context. The message is llama-server's error, as JSON."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(400, json.dumps({"error": error}, separators=(",", ":")))
        self.tokens = int(error["n_prompt_tokens"])


@dataclass(frozen=True, slots=True)
class Call:
    """The input of a generation: a chat or a raw prompt. `sampling` has llama.cpp's names."""

    messages: list[dict[str, str]] | None = None
    prompt: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """The text of about one token, with log probabilities if they were requested."""

    text: str
    logprobs: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Completion:
    """Why a generation ended, with llama.cpp's counts: tokens and milliseconds."""

    reason: str
    prompt_tokens: int
    completion_tokens: int
    prompt_ms: float
    completion_ms: float


class Engine:
    """The models, each loaded when it is needed. Thread-safe; generates up to `parallel` responses
    at a time.

    The embedding model has a second context: the small batches that allow a cancellation while a
    prompt is processed are too small for a text to embed.
    """

    def __init__(self, model: Model, parallel: int = 4) -> None:
        self.model = model
        self.slots = Slots(parallel)
        self.embed_slots = Slots(1)
        self._loaders = {NAME: lambda: _load(model, parallel), EMBED_NAME: lambda: _embedder(model)}
        self._servers: dict[str, Any] = {}
        self._load_lock = Lock()
        self.load(NAME)

    @property
    def busy(self) -> int:
        """Return the number of running calls."""
        return self.slots.in_use + self.embed_slots.in_use

    @property
    def loaded(self) -> list[str]:
        """Return the names of the models in memory."""
        return list(self._servers)

    def load(self, name: str) -> Any:
        """Load a model unless it is in memory, and return it."""
        with self._load_lock:
            if name not in self._servers:
                self._servers[name] = self._loaders[name]()
            return self._servers[name]

    def unload(self, name: str) -> None:
        """Unload a model; its running calls end first."""
        with self._load_lock:
            self._servers.pop(name, None)

    def generate(
        self,
        call: Call,
        take: Callable[[Chunk], None],
        is_wanted: IsWanted,
        *,
        truncate: bool = True,
    ) -> Completion:
        """Generate, passing every chunk to `take` as it is produced.

        `is_wanted` is called between any two tokens. If it returns False, the generation stops and
        this raises ClientDisconnected. An exception of `take` stops it too and is raised here. A
        prompt that is too long is cut, or raises PromptTooLong.
        """
        run = _Run(take, is_wanted)
        with self.slots.acquire(run.is_wanted):
            for _ in range(len(call.messages or ()) + MAX_CUTS):
                try:
                    self._start(run, call)
                    break
                except PromptTooLong as error:
                    if not truncate:
                        raise
                    call = cut_to_fit(call, error.tokens)
        return run.completion()

    def _start(self, run: "_Run", call: Call) -> None:
        server = self.load(NAME)
        if call.messages is not None:
            run.start(server.handle_chat_completions, _chat_request(call))
        else:
            run.start(server.handle_completions, _raw_request(call))

    def embed(self, text: str, truncate: bool, is_wanted: IsWanted) -> tuple[list[float], int]:
        """Return the normalised vector of one text and its number of tokens."""
        with self.embed_slots.acquire(is_wanted):
            server = self.load(EMBED_NAME)
            while True:
                reply = server.handle_embeddings({"input": [text]})
                if "error" not in reply:
                    return reply["data"][0]["embedding"], reply["usage"]["prompt_tokens"]
                text = _shortened(text, reply["error"], truncate)

    def close(self, timeout: float = 2.0) -> None:
        """Unload the models once all calls have ended; keep them if that takes too long."""
        deadline = monotonic() + timeout
        while self.busy and monotonic() < deadline:
            sleep(0.01)
        if not self.busy:
            self._servers.clear()


class _Run:
    """One running call: takes llama.cpp's events and decides whether to continue."""

    def __init__(self, take: Callable[[Chunk], None], is_wanted: IsWanted) -> None:
        self.is_wanted = is_wanted
        self._take_chunk = take
        self._last: dict[str, Any] | None = None
        self._failure: Exception | None = None

    def start(self, handle: Callable[..., None], request: dict[str, Any]) -> None:
        self._failure = None
        try:
            handle(request, self._on_event)
        except (ValueError, RuntimeError) as error:
            # llama.cpp's exceptions: it rejects the request.
            raise EngineError(400, _reason(str(error))) from error
        if self._failure:
            raise self._failure

    def completion(self) -> Completion:
        if self._last is None:
            raise EngineError(500, "the engine stopped without a last event")
        timings = self._last["timings"]
        return Completion(
            reason=self._last["choices"][0]["finish_reason"],
            prompt_tokens=timings["cache_n"] + timings["prompt_n"],
            completion_tokens=timings["predicted_n"],
            prompt_ms=timings["prompt_ms"],
            completion_ms=timings["predicted_ms"],
        )

    def _on_event(self, event: dict[str, Any]) -> bool:
        """Take one event; return True to make llama.cpp cancel the call and free its slot."""
        try:
            self._take(event)
        except Exception as error:
            # It must not unwind through C++, so `start` raises it.
            self._failure = error
        return self._failure is not None

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise _engine_error(event["error"])
        if not self.is_wanted():
            raise ClientDisconnected
        if not event.get("choices"):
            return
        choice = event["choices"][0]
        text = choice.get("text") or choice.get("delta", {}).get("content") or ""
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        if text or logprobs:
            self._take_chunk(Chunk(text, logprobs))
        if choice["finish_reason"]:
            self._last = event


# --- Requests in llama.cpp's format ---


def _chat_request(call: Call) -> dict[str, Any]:
    request = _common(call) | {"messages": call.messages}
    if call.schema is not None:
        schema = {"schema": call.schema}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    if call.top_logprobs is not None:
        request |= {"logprobs": True, "top_logprobs": max(1, call.top_logprobs)}
    return request


def _raw_request(call: Call) -> dict[str, Any]:
    request = _common(call) | {"prompt": call.prompt}
    if call.schema is not None:
        request["json_schema"] = call.schema
    if call.top_logprobs is not None:
        request["logprobs"] = max(1, call.top_logprobs)
    return request


def _common(call: Call) -> dict[str, Any]:
    sampling = call.sampling
    # A prompt from the cache gives logits that differ in the last bits, which can change a token.
    # A request for a repeatable response gets no cache.
    repeatable = "seed" in sampling or sampling.get("temperature") == 0
    # A call can be cancelled at its events. Progress events come while its prompt is processed.
    fixed = {"stream": True, "return_progress": True, "cache_prompt": not repeatable}
    return sampling | fixed


# --- Errors ---


def _engine_error(error: dict[str, Any]) -> EngineError:
    if error.get("type") == "exceed_context_size_error":
        return PromptTooLong(error)
    status = error.get("code", 500)
    return EngineError(status if 400 <= status < 500 else 500, _reason(error["message"]))


def _reason(message: str) -> str:
    reason = message.rpartition("generation failed: ")[2]
    # Ollama's wording.
    return reason.replace("JSON schema error", "JSON schema conversion failed:", 1)


def cut_to_fit(call: Call, tokens: int) -> Call:
    """Return a call without its oldest message. A single message is cut to half a context."""
    share = CONTEXT / 2 / tokens
    if call.messages is None:
        return replace(call, prompt=call.prompt[: int(len(call.prompt) * share)])
    *older, last = call.messages
    oldest = next((n for n, message in enumerate(older) if message["role"] != "system"), None)
    if oldest is not None:
        return replace(call, messages=[*older[:oldest], *older[oldest + 1 :], last])
    content = last["content"][: int(len(last["content"]) * share)]
    return replace(call, messages=[*older, last | {"content": content}])


def _shortened(text: str, error: dict[str, Any], truncate: bool) -> str:
    """Return about as much of the text as fits; raise EngineError for any other error."""
    tokens = re.search(r"\((\d+) tokens\)", error["message"])
    if not tokens:
        raise _engine_error(error)
    if not truncate:
        raise EngineError(400, TOO_LONG)
    # The tokenizer is not accessible, so cut in proportion, a little more, and try again.
    return text[: int(len(text) * EMBED_CONTEXT / int(tokens[1]) * 0.98)]


# --- Loading ---


def _load(model: Model, parallel: int) -> Any:
    return _serve(model, n_ctx=CONTEXT * parallel, n_parallel=parallel, n_batch=BATCH)


def _embedder(model: Model) -> Any:
    mean = _library().llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    size = EMBED_CONTEXT
    return _serve(model, n_ctx=size, n_parallel=1, n_batch=size, embedding=True, pooling_type=mean)


def _library() -> Any:
    try:
        return import_module("xllamacpp")
    except ImportError as error:
        raise EngineMissing("xllamacpp") from error


def _serve(model: Model, n_batch: int, **settings: Any) -> Any:
    library = _library()
    params = library.CommonParams()
    params.model.path = str(model.path)
    plain = library.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    quiet = {"verbosity": ERRORS_ONLY, "ui": False, "endpoint_slots": False, "fit_params": False}
    # The cache of old prompts would grow to 8 GB.
    small = {"cache_ram_mib": 0, "cache_idle_slots": False, "warmup": False, "n_threads_http": 1}
    settings |= quiet | small | {"n_ubatch": n_batch, "n_batch": n_batch, "reasoning_format": plain}
    for name, value in settings.items():
        setattr(params, name, value)
    params.cpuparams.n_threads = _generation_threads()
    return _start_server(library, params)


def _generation_threads() -> int:
    """Return the number of threads that generate: all cores but one, which the gateway needs.

    The threads wait for each other at every step of every token. If one of them shares its core
    with a busy process, a token takes twice as long or longer. Prompts are processed in long steps
    on all cores.
    """
    return max(1, (os.cpu_count() or 1) - 1)


def _start_server(library: Any, params: Any) -> Any:
    """Start llama.cpp with its HTTP listener, which cannot be turned off, on a hidden socket."""
    params.api_keys = [secrets.token_hex(32)]
    if not hasattr(socket, "AF_UNIX"):
        return library.Server(params)
    with TemporaryDirectory(prefix="engine-") as folder:
        params.hostnames = [f"{folder}/llama.sock"]
        return library.Server(params)
