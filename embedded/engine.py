"""Run the model on llama.cpp. The only file that imports it, and only when an engine starts."""

import json
import os
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from tempfile import TemporaryDirectory
from threading import Event, Lock
from time import monotonic, sleep
from typing import Any

from embedded.model import EMBED_NAME, NAME, EngineMissing, Model
from embedded.queueing import ClientDisconnected, Places

# Tokens one request may hold, prompt and answer together. The model was trained on 8192; every
# token costs 23 KB of memory in every slot.
CONTEXT = 2048

# A text to embed must fit one batch of llama.cpp, and a batch of 2048 would take 600 MB and five
# seconds in which nothing can be cancelled.
EMBED_CONTEXT = 512

# Prompt tokens read between two looks at the client: an eighth of a second on two cores.
BATCH = 64

ERRORS_ONLY = -1
# How often one text is cut before its request is given up.
CUTS = 4
TOO_LONG = "the input length exceeds the context length"

Wanted = Callable[[], bool]


class EngineError(Exception):
    """The engine cannot answer this call; `status` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class PromptTooLong(EngineError):
    """The prompt has more tokens than the context. The text is llama-server's error, as JSON."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(400, json.dumps({"error": error}, separators=(",", ":")))
        self.tokens = int(error["n_prompt_tokens"])


@dataclass(frozen=True, slots=True)
class Call:
    """What to generate: a chat, or a raw prompt. `sampling` uses llama.cpp's own names."""

    messages: list[dict[str, str]] | None = None
    prompt: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of about one token, with the odds of each token where they were asked for."""

    text: str
    logprobs: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended, with llama.cpp's own counts: tokens and milliseconds."""

    reason: str
    prompt_tokens: int
    answer_tokens: int
    prompt_ms: float
    answer_ms: float


class Engine:
    """The models, each loaded when it is needed. Safe to call from many threads; up to `parallel`
    responses at a time.

    The second model is a context of its own: the small batches that let a response be cancelled
    while its prompt is read are too small to embed with.
    """

    def __init__(self, model: Model, parallel: int = 4) -> None:
        self.model = model
        self.places = Places(parallel)
        self._embed_places = Places(1)
        self._loaders = {NAME: lambda: _load(model, parallel), EMBED_NAME: lambda: _embedder(model)}
        self._servers: dict[str, Any] = {}
        self._load_lock = Lock()
        self._closing = Event()
        self.load(NAME)

    @property
    def busy(self) -> int:
        """Return how many calls are being worked on now."""
        return self.places.taken + self._embed_places.taken

    @property
    def loaded(self) -> list[str]:
        """Return the names of the models in memory."""
        return list(self._servers)

    def load(self, name: str) -> Any:
        """Bring a model into memory, if it is not there, and return it."""
        with self._load_lock:
            if name not in self._servers:
                self._servers[name] = self._loaders[name]()
            return self._servers[name]

    def unload(self, name: str) -> None:
        """Let go of a model; what it is doing goes on to its end."""
        with self._load_lock:
            self._servers.pop(name, None)

    def answer(
        self,
        call: Call,
        each: Callable[[Piece], None],
        wanted: Wanted,
        *,
        truncate: bool = True,
    ) -> Ending:
        """Generate, handing every piece to `each` as it comes.

        `wanted` is asked between any two tokens; when it says no the work stops for real and
        ClientDisconnected is raised. What `each` raises stops it too and is raised again here. A
        prompt that is too long is cut, or raises PromptTooLong.
        """
        run = _Run(each, self._while_open(wanted))
        with self.places.one(run.wanted):
            for _ in range(len(call.messages or ()) + CUTS):
                try:
                    self._carry_out(run, call)
                    break
                except PromptTooLong as error:
                    if not truncate:
                        raise
                    call = cut_to_fit(call, error.tokens)
        return run.ending()

    def _carry_out(self, run: "_Run", call: Call) -> None:
        server = self.load(NAME)
        if call.messages is not None:
            run.carry_out(server.handle_chat_completions, _chat_request(call))
        else:
            run.carry_out(server.handle_completions, _raw_request(call))

    def embed(self, text: str, truncate: bool, wanted: Wanted) -> tuple[list[float], int]:
        """Return the normalised vector of one text and its number of tokens."""
        with self._embed_places.one(self._while_open(wanted)):
            server = self.load(EMBED_NAME)
            while True:
                reply = server.handle_embeddings({"input": [text]})
                if "error" not in reply:
                    return reply["data"][0]["embedding"], reply["usage"]["prompt_tokens"]
                text = _shortened(text, reply["error"], truncate)

    def close(self, patience: float = 2.0) -> bool:
        """Stop all answers and let go of the model; say whether everything stopped in time."""
        self._closing.set()
        until = monotonic() + patience
        while self.busy and monotonic() < until:
            sleep(0.01)
        if idle := not self.busy:
            self._servers.clear()
        return idle

    def _while_open(self, wanted: Wanted) -> Wanted:
        return lambda: not self._closing.is_set() and wanted()


class _Run:
    """One call on its way: what llama.cpp tells, and the decision to go on or not."""

    def __init__(self, each: Callable[[Piece], None], wanted: Wanted) -> None:
        self.wanted = wanted
        self._each = each
        self._last: dict[str, Any] | None = None
        self._failure: Exception | None = None

    def carry_out(self, handle: Callable[..., None], request: dict[str, Any]) -> None:
        self._failure = None
        try:
            handle(request, self._heard)
        except (ValueError, RuntimeError) as error:
            # llama.cpp's own exceptions: it would not take the request.
            raise EngineError(400, _reason(str(error))) from error
        if self._failure:
            raise self._failure

    def ending(self) -> Ending:
        if self._last is None:
            raise EngineError(500, "the engine stopped without an ending")
        timings = self._last["timings"]
        return Ending(
            reason=self._last["choices"][0]["finish_reason"],
            prompt_tokens=timings["cache_n"] + timings["prompt_n"],
            answer_tokens=timings["predicted_n"],
            prompt_ms=timings["prompt_ms"],
            answer_ms=timings["predicted_ms"],
        )

    def _heard(self, event: dict[str, Any]) -> bool:
        """Take one event; return True to have llama.cpp drop the call and free its slot."""
        try:
            self._take(event)
        except Exception as error:
            # Kept, because it must not unwind through C++; `carry_out` raises it again.
            self._failure = error
        return self._failure is not None

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise _engine_error(event["error"])
        if not self.wanted():
            raise ClientDisconnected
        if not event.get("choices"):
            return
        choice = event["choices"][0]
        text = choice.get("text") or choice.get("delta", {}).get("content") or ""
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        if text or logprobs:
            self._each(Piece(text, logprobs))
        if choice["finish_reason"]:
            self._last = event


# Requests, as llama.cpp wants them


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
    # A prompt read anew and one found in the cache differ in the last bits, enough to turn a
    # token: who asks for a repeatable answer gets no cache.
    repeatable = "seed" in sampling or sampling.get("temperature") == 0
    # Progress events are the moments at which a call can be dropped while its prompt is read.
    steady = {"stream": True, "return_progress": True, "cache_prompt": not repeatable}
    return sampling | steady


# Errors


def _engine_error(error: dict[str, Any]) -> EngineError:
    if error.get("type") == "exceed_context_size_error":
        return PromptTooLong(error)
    status = error.get("code", 500)
    return EngineError(status if 400 <= status < 500 else 500, _reason(error["message"]))


def _reason(message: str) -> str:
    reason = message.rpartition("generation failed: ")[2]
    # Ollama's word for it.
    return reason.replace("JSON schema error", "JSON schema conversion failed:", 1)


def cut_to_fit(call: Call, tokens: int) -> Call:
    """Return a call without its oldest message; where it has but one, with half a context of it."""
    share = CONTEXT / 2 / tokens
    if call.messages is None:
        return replace(call, prompt=call.prompt[: int(len(call.prompt) * share)])
    *older, last = call.messages
    oldest = next((n for n, said in enumerate(older) if said["role"] != "system"), None)
    if oldest is not None:
        return replace(call, messages=[*older[:oldest], *older[oldest + 1 :], last])
    content = last["content"][: int(len(last["content"]) * share)]
    return replace(call, messages=[*older, last | {"content": content}])


def _shortened(text: str, error: dict[str, Any], truncate: bool) -> str:
    """Return about as much of the text as fits; raise EngineError if that is not the trouble."""
    tokens = re.search(r"\((\d+) tokens\)", error["message"])
    if not tokens:
        raise _engine_error(error)
    if not truncate:
        raise EngineError(400, TOO_LONG)
    # There is no tokenizer to ask, so cut in proportion, a little more, and try again.
    return text[: int(len(text) * EMBED_CONTEXT / int(tokens[1]) * 0.98)]


# Loading


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
    frugal = {"cache_ram_mib": 0, "cache_idle_slots": False, "warmup": False, "n_threads_http": 1}
    settings |= (
        quiet | frugal | {"n_ubatch": n_batch, "n_batch": n_batch, "reasoning_format": plain}
    )
    for name, value in settings.items():
        setattr(params, name, value)
    params.cpuparams.n_threads = _writing_threads()
    return _unreachable(library, params)


def _writing_threads() -> int:
    """Return how many threads write: one core is left to the gateway. They wait for each other at
    every step of every token; beside one that works, a thread too many is twice as slow or worse.
    A prompt is read in long steps, by all cores."""
    return max(1, (os.cpu_count() or 1) - 1)


def _unreachable(library: Any, params: Any) -> Any:
    """Start llama.cpp with its own HTTP listener, which cannot be turned off, out of reach."""
    params.api_keys = [secrets.token_hex(32)]
    if not hasattr(socket, "AF_UNIX"):
        return library.Server(params)
    with TemporaryDirectory(prefix="engine-") as folder:
        params.hostnames = [f"{folder}/llama.sock"]
        return library.Server(params)
