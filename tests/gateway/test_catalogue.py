"""Which models a key sees, and what of their facts."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway import catalogue
from gateway.errors import BadRequest, Forbidden
from gateway.metering import Offer

PRICE = Offer(Decimal("0.002"), Decimal("0.004"), "USD")
OFFERS = {"llama3:latest": PRICE, "mistral:latest": PRICE, "gpt-oss:20b": PRICE}

LLAMA = {"name": "llama3:latest", "model": "llama3:latest", "size": 1}
MISTRAL = {"name": "Mistral:latest", "size": 2}
UNPRICED = {"name": "secret-project:latest", "size": 3}
REMOTE = {"name": "gpt-oss:20b", "remote_host": "https://ollama.com", "remote_model": "gpt-oss"}
BROKEN: list[Any] = [{"name": "not a name"}, {"name": 5}, {}, "llama3", None]
LISTING = {"models": [LLAMA, MISTRAL, UNPRICED, REMOTE, *BROKEN]}


def seen(*allowed: str, sees_all: bool = False) -> list[Any]:
    allowed_models = catalogue.allowed_models(allowed, sees_all=sees_all)
    return [entry.get("name") for entry in catalogue.visible(LISTING, allowed_models, OFFERS)]


def test_a_customer_sees_what_is_for_sale() -> None:
    assert seen() == ["llama3:latest", "Mistral:latest"]


@pytest.mark.parametrize(
    "spelled", ["mistral", "MISTRAL:latest", "library/mistral", "mistral:local"]
)
def test_a_key_sees_what_it_may_use_by_any_spelling(spelled: str) -> None:
    assert seen(spelled) == ["Mistral:latest"]


@pytest.mark.parametrize("allowed", ["secret-project", "gpt-oss:20b", "not a name", "x:cloud", ""])
def test_a_key_for_nothing_that_is_for_sale_sees_nothing(allowed: str) -> None:
    assert seen(allowed) == []


def test_operators_see_everything_that_runs_in_this_house() -> None:
    names = seen(sees_all=True)

    assert names[:3] == ["llama3:latest", "Mistral:latest", "secret-project:latest"]
    assert "gpt-oss:20b" not in names


@pytest.mark.parametrize("listing", [{}, {"models": None}, {"models": "x"}, {"models": {"a": 1}}])
def test_an_odd_listing_is_an_empty_one(listing: dict[str, Any]) -> None:
    allowed_models = catalogue.allowed_models([], sees_all=True)

    assert catalogue.visible(listing, allowed_models, OFFERS) == []
    assert catalogue.names_of(listing) == []


def test_names_of_a_listing_are_canonical() -> None:
    names = ["llama3:latest", "mistral:latest", "secret-project:latest", "gpt-oss:20b", "5:latest"]

    assert catalogue.names_of(LISTING) == names


# --- May this key use it --------------------------------------------------------------------------


def test_a_key_without_a_list_may_use_every_model() -> None:
    catalogue.allowed_models([], sees_all=False).check("anything:latest")


def test_a_key_with_a_list_may_use_no_other() -> None:
    allowed_models = catalogue.allowed_models(["LLAMA3"], sees_all=False)
    allowed_models.check("llama3:latest")
    with pytest.raises(Forbidden, match="'mistral:latest'"):
        allowed_models.check("mistral:latest")


def test_even_an_operators_key_keeps_to_its_list() -> None:
    with pytest.raises(Forbidden):
        catalogue.allowed_models(["llama3"], sees_all=True).check("mistral:latest")


@examples(deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1))
def test_a_list_of_whatever_never_opens_everything(allowed: list[str]) -> None:
    allowed_models = catalogue.allowed_models(allowed, sees_all=False)

    assert not allowed_models.has("a-model-nobody-listed:latest")


@pytest.mark.parametrize("spelled", ["", "a b", "../x", "x:cloud", "\ud800", "x" * 1000])
def test_a_name_that_is_none_is_a_bad_request(spelled: str) -> None:
    with pytest.raises(BadRequest):
        catalogue.canonical_name(spelled)


# --- Facts ----------------------------------------------------------------------------------------

FACTS = {
    "license": "MIT",
    "modelfile": "FROM /srv/blobs",
    "template": "{{ .Prompt }}",
    "system": "secret",
    "messages": [],
    "details": {"family": "llama"},
    "capabilities": ["completion"],
    "remote_host": "https://ollama.com",
    "tensors": [],
    "anything new": 1,
}


def test_a_customer_is_shown_a_fixed_set_of_facts() -> None:
    shown = catalogue.shown(FACTS, catalogue.allowed_models([], sees_all=False))

    assert shown == {
        "license": "MIT",
        "details": {"family": "llama"},
        "capabilities": ["completion"],
    }


def test_an_operator_is_shown_all_facts() -> None:
    assert catalogue.shown(FACTS, catalogue.allowed_models([], sees_all=True)) == FACTS


def test_a_model_is_listed_with_its_price() -> None:
    listed = catalogue.priced(MISTRAL | {"digest": "0123"}, OFFERS)

    assert listed == {
        "name": "Mistral:latest",
        "size": 2,
        "modified_at": None,
        "details": None,
        "price_per_1k": {"prompt": "0.002", "completion": "0.004", "currency": "USD"},
    }
    assert catalogue.priced(UNPRICED, OFFERS)["price_per_1k"] is None
