"""Which models a model server has, and which of them are in its memory, without asking each time.

Each process caches the listings of a server, and one call at a time refreshes them. A request for a
model that was listed recently does not wait: the cache decides, and is refreshed in the background.
A request for a model that is not in the cache waits for a refresh.

If the server is silent, or its listing cannot be read, no model counts as missing: the model server
decides. If it refuses connections, requests get an error that says so.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from django.conf import settings

from gateway import catalogue
from gateway.errors import GatewayError, UpstreamBroke, UpstreamDown, UpstreamStalled
from gateway.scheduling.remembered import Remembered
from gateway.scheduling.shared_call import StillRunning
from gateway.upstream.cancellation import Cancellation
from gateway.upstream.client import OllamaClient, configured_client

T = TypeVar("T")
Listing = Mapping[str, Any]

# How long a call for a listing may take in all, and how long a request for a model waits for it.
LISTING_SECONDS = 10.0
LOOK_SECONDS = 2.0
# After a silence, requests do not wait for a look for so long.
SILENT_SECONDS = 5.0
# How long a model that was there is believed to be, and after how long a look in the background is
# due. Only operators remove models; memory changes by itself.
INSTALLED_TRUSTED, INSTALLED_REFRESHED = 60.0, 10.0
LOADED_TRUSTED, LOADED_REFRESHED = 10.0, 1.0
# Operators look at many models; only those of the last moment are kept.
MOST_SHOWN = 256


@dataclass(frozen=True, slots=True)
class Models:
    """A listing, and what is read from it by canonical name: digests, and contexts in tokens.
    Models that run elsewhere are not in it."""

    listing: Listing
    digests: Mapping[str, str]
    contexts: Mapping[str, int]

    def has(self, model: str) -> bool:
        return model in self.digests


def read(listing: Listing) -> Models:
    """Read an answer of `/api/tags` or `/api/ps`; raise UpstreamBroke for what is none."""
    if not isinstance(listing.get("models"), list):
        raise UpstreamBroke()
    here = [one for one in catalogue.entries_of(listing) if catalogue.runs_here(one)]
    named = {catalogue.name_of(one): one for one in here}
    named.pop("", None)
    return Models(
        listing,
        {name: str(one.get("digest") or "") for name, one in named.items()},
        {name: size for name, one in named.items() if (size := _context(one))},
    )


def _context(entry: Mapping[str, Any]) -> int:
    """Return how many tokens a model reads at most; 0 where its entry does not say."""
    details = entry.get("details")
    found = entry.get("context_length")
    if found is None and isinstance(details, dict):
        found = details.get("context_length")
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


class HostInventory:
    """What is known of one model server."""

    def __init__(self, client: OllamaClient) -> None:
        self.client = client
        self.tags: Remembered[Models] = Remembered(self._ask_tags)
        self.ps: Remembered[Models] = Remembered(self._ask_ps)
        self.version: Remembered[Mapping[str, Any]] = Remembered(partial(self._ask, "version"))
        self._shown: dict[str, Remembered[Mapping[str, Any]]] = {}
        # A runner is listed under the name that loaded it, and serves every model of the same
        # weights. By model: the names that were listed when it was loaded and not listed itself.
        self._listed_as: dict[str, frozenset[str]] = {}
        # The context each model was last seen with, in memory.
        self._contexts: dict[str, int] = {}

    # --- Installed --------------------------------------------------------------------------------

    def installed(self, model: str) -> bool | None:
        """Tell whether a model is installed, by what is known without waiting; None: not known."""
        trusted = self.tags.known(INSTALLED_TRUSTED)
        if trusted is not None and trusted.has(model):
            if self.tags.known(INSTALLED_REFRESHED) is None:
                self.tags.refresh(INSTALLED_REFRESHED)
            return True
        fresh = self.tags.known(settings.INVENTORY_SECONDS)
        return None if fresh is None else fresh.has(model)

    def find(self, model: str, cancellation: Cancellation) -> bool:
        """Tell whether a model is installed; ask, if need be. True where it cannot be known.

        Raises UpstreamDown, or why the Cancellation was broken off.
        """
        found = self.installed(model)
        if found is None:
            tags = self._look(self.tags, cancellation)
            found = tags is None or tags.has(model)
        return found

    def names(self, cancellation: Cancellation, timeout: float) -> Collection[str] | None:
        """Return the models that are installed; None where that is not known so soon.

        Raises how the look failed, or why the Cancellation was broken off.
        """
        try:
            return self.tags.get(cancellation, settings.INVENTORY_SECONDS, timeout).digests.keys()
        except StillRunning:
            return None

    # --- In memory --------------------------------------------------------------------------------

    def loaded(self, model: str) -> bool | None:
        """Tell whether a model is in memory, by what is known without waiting; None: not known."""
        trusted = self.ps.known(LOADED_TRUSTED)
        if trusted is not None and self._is_among(model, trusted):
            if self.ps.known(LOADED_REFRESHED) is None:
                self.ps.refresh(LOADED_REFRESHED)
            return True
        fresh = self.ps.known(settings.INVENTORY_SECONDS)
        return None if fresh is None else self._is_among(model, fresh)

    def find_loaded(self, model: str, cancellation: Cancellation) -> bool:
        """Tell whether a model is in memory; ask, if need be.

        A server that is silent may be loading one; one whose listing cannot be read is left alone.
        Raises UpstreamDown, or why the Cancellation was broken off.
        """
        found = self.loaded(model)
        if found is None:
            ps = self._look(self.ps, cancellation)
            if ps is None:
                return not isinstance(self.ps.failure(SILENT_SECONDS), UpstreamStalled)
            found = self._is_among(model, ps)
        return found

    def note_loaded(self, model: str, ps: Models) -> None:
        """Take note of a listing that was asked for when a model had been loaded."""
        self.ps.remember(ps)
        if not self._is_among(model, ps):
            self._listed_as[model] = frozenset(ps.digests)

    def effective_context(self, model: str) -> int | None:
        """Return how many tokens a model reads at most, by what is known; None where nothing is.

        In memory it may read fewer than it was trained for.
        """
        tags = self.tags.known()
        return self._contexts.get(model) or (tags and tags.contexts.get(model)) or None

    def _is_among(self, model: str, ps: Models) -> bool:
        if ps.has(model) or self._listed_as.get(model) == frozenset(ps.digests):
            return True
        tags = self.tags.known()
        digest = tags.digests.get(model) if tags else ""
        return bool(digest) and digest in ps.digests.values()

    # --- Asking -----------------------------------------------------------------------------------

    def facts_of(self, model: str) -> Remembered[Mapping[str, Any]]:
        """Return what is known of one model's facts."""
        found = self._shown.get(model)
        if found is None:
            if len(self._shown) >= MOST_SHOWN:
                self._shown.clear()
            ask = partial(self._ask, "show", body={"model": model})
            found = self._shown.setdefault(model, Remembered(ask))
        return found

    def forget(self) -> None:
        """Believe nothing any more: models were pulled, deleted or unloaded."""
        self._shown.clear()
        self.tags.forget()
        self.ps.forget()

    def _look(self, what: Remembered[T], cancellation: Cancellation) -> T | None:
        """Return what the model server says now; None where that cannot be had soon."""
        failure = what.failure(SILENT_SECONDS)
        if failure is not None and not isinstance(failure, UpstreamDown):
            what.refresh(SILENT_SECONDS)
            return None
        try:
            return what.get(cancellation, settings.INVENTORY_SECONDS, LOOK_SECONDS)
        except StillRunning:
            what.note_failure(UpstreamStalled())
        except UpstreamDown:
            raise
        except GatewayError:
            if cancellation.reason:
                raise
        return None

    def _ask_tags(self, cancellation: Cancellation) -> Models:
        return read(self._ask("tags", cancellation))

    def _ask_ps(self, cancellation: Cancellation) -> Models:
        ps = read(self._ask("ps", cancellation))
        self._contexts.update(ps.contexts)
        return ps

    def _ask(
        self, route: str, cancellation: Cancellation, body: dict[str, Any] | None = None
    ) -> Mapping[str, Any]:
        return self.client.fetch(route, body, LISTING_SECONDS, cancellation)


# --- The one model server of the settings ---------------------------------------------------------

_inventories: dict[str, HostInventory] = {}


def inventory() -> HostInventory:
    """Return what this process knows of the model server that requests go to."""
    client = configured_client()
    known = _inventories.get(client.base)
    return known or _inventories.setdefault(client.base, HostInventory(client))


def installed(model: str) -> bool | None:
    """Tell whether a model is installed, by what is known without waiting; None: not known."""
    return inventory().installed(model)


def installed_models() -> list[str] | None:
    """Return the canonical names of the models that can be served, sorted; None if the model server
    does not answer within LOOK_SECONDS."""
    try:
        names = inventory().names(Cancellation(None), LOOK_SECONDS)
    except GatewayError:
        return None
    return None if names is None else sorted(names)


def effective_context(model: str) -> int | None:
    """Return how many tokens a model reads at most, by what is known; None where nothing is."""
    return inventory().effective_context(model)
