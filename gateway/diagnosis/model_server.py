"""Check the model server, and report each problem with its remedy."""

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from django.conf import settings

from gateway import catalogue, providers
from gateway.diagnosis import prompt_sharing
from gateway.errors import GatewayError, UpstreamDown, UpstreamStalled
from gateway.scheduling.inventory import Models, read
from gateway.upstream.cancellation import Cancellation, disconnect_monitor
from gateway.upstream.client import configured_client

# 0.30.0 leaves cached tokens out of its counts, and older ones run models in another way.
OLDEST = (0, 30, 1)
# More names than this are counted, not listed.
NAMES = 5
# What Ollama takes where nobody sets a context.
USUAL_CONTEXT = 4096
# Fields of a template in Go. Jinja has `{{` too, but no name that begins with a full stop.
GO_FIELD = re.compile(r"\{\{[^{}]*(?<![\w\])])\$?\.[A-Z]")
BUILT_IN = re.compile(r"^(?:RENDERER|PARSER) ", re.MULTILINE)


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do, where there is something to do."""

    state: State
    subject: str
    message: str
    remedy: str = ""


class Server:
    """The model server of the settings, asked until a deadline."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def ask(self, route: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON object of a call; raise GatewayError, UpstreamStalled at the deadline."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise UpstreamStalled()
        cancellation = Cancellation(None)
        disconnect_monitor.add(cancellation)
        try:
            return configured_client().fetch(route, body, left, cancellation)
        finally:
            cancellation.detach()


def examine(seconds: float, *, measure: bool = True) -> Iterator[Finding]:
    """Yield what is found, within a time. `measure`: also send prompts, to see what is shared."""
    server = Server(seconds)
    try:
        yield version(server.ask("version"))
        tags, ps = read(server.ask("tags")), read(server.ask("ps"))
    except GatewayError as error:
        yield unreachable(error)
        return
    yield from prices(tags.digests.keys())
    yield from _guarded("templates", lambda: templates(server, tags.digests.keys()))
    yield from contexts(tags, ps)
    yield other_clients(ps)
    if measure:
        yield from _guarded("prompts", lambda: [sharing(server, tags, ps)])


def _guarded(subject: str, look: Callable[[], Collection[Finding]]) -> Iterator[Finding]:
    """Yield what a look finds; what the model server refuses is a finding too."""
    try:
        yield from look()
    except GatewayError as error:
        yield Finding(
            State.WARNING,
            subject,
            f"Could not be looked at: {error.message}",
            "Try again with a longer --timeout; a model may have been loading.",
        )


def unreachable(error: GatewayError) -> Finding:
    base = settings.OLLAMA_BASE
    if isinstance(error, UpstreamDown):
        message = f"Nothing accepts connections at {base}."
        remedy = (
            "Start it (`ollama serve`), or set OLLAMA_BASE to where it listens; on another host "
            "Ollama must be started with OLLAMA_HOST=0.0.0.0. To try the gateway without one: "
            "`manage.py embedded_ollama`."
        )
    elif isinstance(error, UpstreamStalled):
        message = f"{base} accepts a connection and says nothing."
        remedy = "Look at the log of Ollama, and restart it."
    else:
        message = f"{base} does not answer as Ollama does: {error.message}"
        remedy = "Set OLLAMA_BASE to an Ollama. A proxy in front of it must let /api/ through."
    return Finding(State.ERROR, "connection", message, remedy)


def version(found: Mapping[str, Any]) -> Finding:
    said = str(found.get("version") or "")[:40]
    oldest = ".".join(map(str, OLDEST))
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", said)
    if numbers is None or said.startswith("0.0.0"):
        message = f"It calls itself version {said!r}; the oldest supported is {oldest}."
        return Finding(State.WARNING, "version", message, "Use a release of Ollama for customers.")
    if tuple(map(int, numbers.groups())) < OLDEST:
        message = f"Ollama {said} is older than {oldest}, the oldest supported."
        remedy = "Update Ollama: older ones count tokens otherwise, and bills would be wrong."
        return Finding(State.ERROR, "version", message, remedy)
    return Finding(State.OK, "version", f"Ollama {said}; the oldest supported is {oldest}.")


# --- Models and prices ----------------------------------------------------------------------------


def prices(installed: Collection[str]) -> Iterator[Finding]:
    priced = providers.books().priced()
    without_price = [name for name in installed if name not in priced]
    without_model = [name for name in priced if name not in installed]
    if not installed:
        yield Finding(
            State.WARNING, "models", "No model is installed.", "Pull one: `ollama pull llama3.2`."
        )
    elif without_price:
        message = f"Without a price, so not for sale: {some(without_price)}."
        example = f"`manage.py set_price {min(without_price)} --input 0.001`"
        yield Finding(State.WARNING, "models", message, f"Set a price: {example}.")
    else:
        yield Finding(State.OK, "models", f"Each of {len(installed)} models has a price.")
    if without_model:
        message = f"Priced and not installed, so not offered: {some(without_model)}."
        remedy = f"Nothing, or pull one: `ollama pull {min(without_model)}`."
        yield Finding(State.OK, "prices", message, remedy)


def some(names: Collection[str]) -> str:
    shown = sorted(names)
    rest = len(shown) - NAMES
    return ", ".join(shown[:NAMES]) + (f" and {rest} more" if rest > 0 else "")


# --- How models are run ---------------------------------------------------------------------------


def templates(server: Server, installed: Collection[str]) -> list[Finding]:
    """Say who writes the prompt: Ollama (rendered), or llama-server with the model's own template
    (native). Errors come at other moments, and a native tool call comes whole, at the end."""
    rendered: list[str] = []
    native: list[str] = []
    for name in installed:
        facts = server.ask("show", {"model": name})
        (rendered if is_rendered(facts) else native).append(name)
    kinds = {"rendered by Ollama": rendered, "native (llama-server)": native}
    told = [f"{kind}: {some(names)}" for kind, names in kinds.items() if names]
    return [Finding(State.OK, "templates", "; ".join(told) + ".")] if told else []


def is_rendered(facts: Mapping[str, Any]) -> bool:
    """Tell whether a model has a template in Go, or a renderer that is built into Ollama."""
    template, modelfile = str(facts.get("template") or ""), str(facts.get("modelfile") or "")
    return bool(GO_FIELD.search(template) or BUILT_IN.search(modelfile))


def contexts(tags: Models, ps: Models) -> Iterator[Finding]:
    """Say how many tokens the models in memory read. Ollama decides when it loads one."""
    if not ps.contexts:
        yield Finding(
            State.OK, "context", "No model is in memory; its context is decided when it is loaded."
        )
    for name, tokens in ps.contexts.items():
        most = tags.contexts.get(name, 0)
        message = f"{name} reads at most {tokens:,} tokens"
        if most > tokens:
            message += f" of the {most:,} it was made for"
        if tokens <= USUAL_CONTEXT:
            remedy = (
                "Longer conversations lose their beginning. Start Ollama with "
                "OLLAMA_CONTEXT_LENGTH=16384 or more if its memory allows it."
            )
            yield Finding(State.WARNING, "context", f"{message}.", remedy)
        else:
            yield Finding(State.OK, "context", f"{message}.")


# --- Others ---------------------------------------------------------------------------------------


def other_clients(ps: Models) -> Finding:
    """Look for models in memory that nobody asked the gateway for."""
    staying = {catalogue.name_of(one) for one in catalogue.entries_of(ps.listing) if _stays(one)}
    asked = providers.books().recently_used(ps.digests.keys())
    foreign = [name for name in ps.digests if name not in asked and name not in staying]
    if not foreign:
        message = "No model is in memory that nobody asked the gateway for."
        return Finding(State.OK, "other clients", message)
    return Finding(
        State.WARNING,
        "other clients",
        f"In memory, though nobody asked the gateway for it today or yesterday: {some(foreign)}.",
        "Another program seems to use this Ollama: what it asks is not billed, takes turns from "
        "customers and shares their prompt cache. Let Ollama listen for the gateway alone.",
    )


def _stays(entry: Mapping[str, Any]) -> bool:
    """Tell whether a model is never unloaded, so that nothing follows from its being there."""
    try:
        return datetime.fromisoformat(str(entry.get("expires_at"))).year > 2200
    except ValueError:
        return False


def sharing(server: Server, tags: Models, ps: Models) -> Finding:
    """Measure whether a prompt that was read is answered faster, and whether a salt prevents it."""
    model = prompt_sharing.choose(tags, ps)
    if model is None:
        return Finding(State.OK, "prompts", "No model that writes text is installed.")
    times = prompt_sharing.measure(server.ask, model, keep=ps.has(model))
    told = f"{model} read a text in {times.first:.0f} ms, again in {times.again:.0f} ms"
    told += f", with another account's salt in {times.other:.0f} ms"
    if not times.is_cached:
        return Finding(State.OK, "prompts", f"No prompt cache was seen: {told}.")
    if times.is_shared:
        return Finding(
            State.ERROR,
            "prompts",
            f"Salts do not keep accounts apart: {told}.",
            "The model's template seems to leave the salt out. Start Ollama with "
            "LLAMA_ARG_CACHE_RAM=0, and do not offer the model to accounts that do not trust "
            "each other. See docs/privacy.md.",
        )
    if settings.ISOLATE_PROMPTS is False:
        message = f"Accounts share a prompt cache: {told}."
        return Finding(State.OK, "prompts", message, "ISOLATE_PROMPTS=on keeps them apart.")
    return Finding(State.OK, "prompts", f"Accounts are kept apart: {told}.")
