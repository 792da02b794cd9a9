"""Which models a key may see and use, and what of their facts a customer is shown. Pure."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.errors import BadRequest, Forbidden
from gateway.metering import Offer
from gateway.names import InvalidName, canonical

# The rest of `/api/show` holds the server's paths, the operator's prompts and its template.
SHOWN_TO_CUSTOMERS = (
    "license",
    "parameters",
    "details",
    "model_info",
    "capabilities",
    "modified_at",
)
REMOTE = ("remote_model", "remote_host")
# From this ratio of `difflib` on, a name is taken for a misspelling of another.
MIN_SIMILARITY = 0.75


@dataclass(frozen=True, slots=True)
class AllowedModels:
    """The models one key may use: `allowed` are canonical names; if it is empty, all. `sees_all`:
    an operator's key, which also lists models without a price."""

    allowed: frozenset[str]
    sees_all: bool

    def has(self, model: str) -> bool:
        return not self.allowed or model in self.allowed

    def check(self, model: str) -> None:
        """Raise Forbidden unless the key may use a model, given by its canonical name."""
        if not self.has(model):
            raise Forbidden(f"This key may not use the model '{model}'.")


def allowed_models(allowed: Collection[str], *, sees_all: bool) -> AllowedModels:
    """Return what a key may use; its list may spell the names in any way."""
    # An invalid name becomes the empty name, which allows nothing. A list without it could be
    # empty, which allows everything.
    return AllowedModels(frozenset(map(_canonical, allowed)), sees_all)


def canonical_name(spelled: str) -> str:
    """Return the canonical name of a model a client asks for; raise BadRequest."""
    try:
        return canonical(spelled)
    except InvalidName as error:
        raise BadRequest(str(error)) from None


def names_of(listing: Mapping[str, Any]) -> list[str]:
    """Return the canonical names in an answer of `/api/tags` or `/api/ps`."""
    return [name for name in map(name_of, entries_of(listing)) if name]


def visible(
    listing: Mapping[str, Any], allowed: AllowedModels, offers: Mapping[str, Offer]
) -> list[dict[str, Any]]:
    """Return the entries a key may see: allowed, priced, and run by this model server itself."""
    return [
        entry
        for entry in entries_of(listing)
        if runs_here(entry)
        and (allowed.sees_all or (allowed.has(name_of(entry)) and name_of(entry) in offers))
    ]


def similar_name(model: str, names: Collection[str]) -> str | None:
    """Return the name that a misspelt one resembles most; None if none does."""
    short = [name.removesuffix(":latest") for name in names]
    matches = difflib.get_close_matches(model.removesuffix(":latest"), short, 1, MIN_SIMILARITY)
    return matches[0] if matches else None


def priced(entry: Mapping[str, Any], offers: Mapping[str, Offer]) -> dict[str, Any]:
    """Return a model as `/models` lists it: name, size in bytes, details and price."""
    offer = offers.get(name_of(entry))
    return {
        "name": entry.get("name"),
        "size": entry.get("size"),
        "modified_at": entry.get("modified_at"),
        "details": entry.get("details"),
        "price_per_1k": offer
        and {
            "prompt": f"{offer.prompt:f}",
            "completion": f"{offer.completion:f}",
            "currency": offer.currency,
        },
    }


def openai_model(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model as `/v1/models` lists it."""
    name = name_of(entry)
    owner = name.rpartition("/")[0].rpartition("/")[2] or "library"
    return {
        "id": name,
        "object": "model",
        "created": seconds(entry.get("modified_at")),
        "owned_by": owner,
    }


def seconds(moment: Any) -> int:
    """Return a time of Ollama's in seconds since 1970; 0 for an invalid one."""
    try:
        return int(datetime.fromisoformat(str(moment)).timestamp())
    except ValueError:
        return 0


def shown(facts: Mapping[str, Any], allowed: AllowedModels) -> dict[str, Any]:
    """Return what a key may see of an answer of `/api/show`."""
    if allowed.sees_all:
        return dict(facts)
    return {name: facts[name] for name in SHOWN_TO_CUSTOMERS if name in facts}


def entries_of(listing: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = listing.get("models")
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def runs_here(entry: Mapping[str, Any]) -> bool:
    """Tell whether a model runs on the model server itself, not on a remote one."""
    return not any(entry.get(mark) for mark in REMOTE)


def name_of(entry: Mapping[str, Any]) -> str:
    return _canonical(str(entry.get("model") or entry.get("name") or ""))


def _canonical(name: str) -> str:
    try:
        return canonical(name)
    except InvalidName:
        return ""
