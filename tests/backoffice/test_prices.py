"""The list of prices, and scheduling a price."""

import re
from datetime import UTC, datetime

import pytest
from django.test import Client
from django.utils import timezone

from billing import price_book
from billing.models import ModelPrice
from tests.fakes.ollama import FakeOllama
from tests.harness.backoffice import (
    PRICES,
    schedule,
    text_of,
)
from tests.harness.callers import set_price


def test_a_price_has_the_canonical_name_and_its_author(admin_client: Client) -> None:
    response = schedule(admin_client, output_per_1k="0.004")

    price = ModelPrice.objects.get()
    assert response.status_code == 302
    assert price.model == "llama3:latest"
    assert (price.prompt_price, price.completion_price) == (2_000_000, 4_000_000)
    assert str(price.created_by) == "olga-the-operator"
    assert price_book.effective_price("llama3:latest", timezone.now()) == price


def test_output_costs_the_same_as_input_by_default(admin_client: Client) -> None:
    schedule(admin_client)

    assert ModelPrice.objects.get().completion_price == 2_000_000


def test_a_price_can_start_later(admin_client: Client) -> None:
    schedule(admin_client, effective_from_0="2190-01-31", effective_from_1="08:00:00")

    assert ModelPrice.objects.get().effective_from == datetime(2190, 1, 31, 8, tzinfo=UTC)
    assert "scheduled" in text_of(admin_client.get(f"{PRICES}?state=scheduled&q=llama3"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "no!model"}, "invalid model name"),
        ({"input_per_1k": "0,002"}, "is not a price"),
        ({"input_per_1k": "0.0000000001"}, "more than 9 decimals"),
        ({"output_per_1k": "-1"}, "out of range"),
        ({"effective_from_0": "2001-01-01", "effective_from_1": "00:00"}, "start in the past"),
    ],
)
def test_an_invalid_price_is_explained_on_the_form(
    admin_client: Client, fields: dict[str, str], message: str
) -> None:
    assert message in text_of(schedule(admin_client, **fields))
    assert not ModelPrice.objects.exists()


def test_the_list_filters_past_and_effective_prices(admin_client: Client) -> None:
    set_price("llama3", "0.002")
    set_price("llama3", "0.003")

    past = text_of(admin_client.get(f"{PRICES}?state=past"))
    effective = text_of(admin_client.get(f"{PRICES}?state=effective"))

    assert ">0.002<" in past and ">0.003<" not in past
    assert ">0.003<" in effective and ">3.00<" in effective and ">0.002<" not in effective


def test_a_price_is_read_only_and_links_to_a_form_for_its_next_version(
    admin_client: Client, priced: ModelPrice
) -> None:
    page = text_of(admin_client.get(f"{PRICES}{priced.pk}/change/"))

    assert 'name="_save"' not in page
    link = re.findall(r'href="([^"]+/add/[^"]+)"', page)[0].replace("&amp;", "&")
    form = text_of(admin_client.get(link))
    assert 'value="llama3:latest"' in form
    assert 'value="0.002"' in form and 'value="0.004"' in form
    assert admin_client.post(f"{PRICES}{priced.pk}/delete/", {"post": "yes"}).status_code == 403


def test_the_list_names_installed_models_without_a_price(
    admin_client: Client, ollama: FakeOllama
) -> None:
    set_price("llama3", "0.002")

    page = text_of(admin_client.get(PRICES))

    waiting = re.findall(r"/add/\?model=([^\"]+)", page)
    assert waiting
    assert "llama3%3Alatest" not in waiting


def test_the_list_says_when_ollama_cannot_be_reached(admin_client: Client) -> None:
    assert "Ollama cannot be reached" in text_of(admin_client.get(PRICES))


def test_an_empty_price_book_says_how_to_fill_it(admin_client: Client) -> None:
    assert "manage.py seed_prices" in text_of(admin_client.get(PRICES))
