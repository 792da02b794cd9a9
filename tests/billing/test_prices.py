"""The price book: versions, the effective one, and the commands that fill it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, IntegrityError, transaction
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from billing import price_book
from billing.models import ModelPrice, TokenUsage
from billing.pricing import InvalidPrice, Rates
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller

pytestmark = pytest.mark.django_db

START = datetime(2026, 1, 1, tzinfo=UTC)
PAST = datetime(2000, 1, 1, tzinfo=UTC)


def at(hours: int) -> datetime:
    return START + timedelta(hours=hours)


def schedule(model: str, price: str, hours: int) -> ModelPrice:
    return price_book.schedule(
        price_book.read_line(model, price), effective_from=at(hours), now=PAST
    )


def price_at(hours: int, model: str = "llama3:latest") -> Decimal | None:
    found = price_book.effective_price(model, at(hours))
    return found.prompt_per_1k if found else None


# --- Versions -------------------------------------------------------------------------------------


def test_the_newest_version_that_has_started_is_effective() -> None:
    schedule("llama3", "0.002", 10)
    schedule("llama3", "0.003", 20)
    schedule("mistral", "0.009", 15)

    shown = [price_at(hours) for hours in (9, 10, 19, 20, 1000)]
    assert shown == [None, Decimal("0.002"), Decimal("0.002"), Decimal("0.003"), Decimal("0.003")]


def test_an_unpriced_model_has_no_effective_price() -> None:
    assert price_book.effective_price("nobody:latest", START) is None
    assert price_book.effective_prices(START) == {}


def test_all_effective_prices_are_found_at_once() -> None:
    schedule("llama3", "0.002", 0)
    schedule("llama3", "0.003", 20)
    schedule("mistral", "0.004", 5)

    assert set(price_book.effective_prices(at(4))) == {"llama3:latest"}
    found = price_book.effective_prices(at(30))
    assert {name: str(price.prompt_per_1k) for name, price in found.items()} == {
        "llama3:latest": "0.003",
        "mistral:latest": "0.004",
    }
    assert set(price_book.effective_prices(at(30), ["mistral:latest", "x"])) == {"mistral:latest"}


def test_a_price_cannot_start_in_the_past() -> None:
    line = price_book.read_line("llama3", "0.002")
    with pytest.raises(InvalidPrice, match="past"):
        price_book.schedule(line, effective_from=at(0), now=at(1))


def test_two_prices_of_a_model_cannot_start_at_the_same_time() -> None:
    schedule("llama3", "0.002", 10)
    with pytest.raises(InvalidPrice, match="already"):
        schedule("LLAMA3:latest", "0.003", 10)


def test_the_database_rejects_two_prices_that_start_at_the_same_time() -> None:
    row = schedule("llama3", "0.002", 10)
    with pytest.raises(IntegrityError), transaction.atomic():
        ModelPrice.objects.create(
            model=row.model, effective_from=row.effective_from, prompt_price=1, completion_price=1
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda: ModelPrice.objects.update(prompt_price=1),
        lambda: ModelPrice.objects.all().delete(),
    ],
    ids=["update", "delete"],
)
def test_a_price_version_cannot_be_changed_or_deleted(change: Callable[[], Any]) -> None:
    schedule("llama3", "0.002", 10)
    with pytest.raises(DatabaseError), transaction.atomic():
        change()
    assert price_at(10) == Decimal("0.002")


HOURS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 99)), max_size=8)


@examples(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(versions=HOURS.map(dict), moment=st.integers(-1, 41), later=st.integers(1, 20))
def test_the_newest_started_version_is_effective_and_a_new_one_changes_no_past(
    versions: dict[int, int], moment: int, later: int
) -> None:
    with transaction.atomic():
        for hours, price in versions.items():
            schedule("llama3", f"0.{price:03}", hours)
        begun = [hours for hours in versions if hours <= moment]
        wanted = Decimal(f"0.{versions[max(begun)]:03}") if begun else None
        assert price_at(moment) == wanted
        if moment + later not in versions:
            schedule("llama3", "0.5", moment + later)
        assert price_at(moment) == wanted
        transaction.set_rollback(True)


def test_a_new_price_changes_no_usage_row(
    priced: ModelPrice, alice: Caller, ollama: FakeOllama
) -> None:
    alice.post("/generate", model="llama3", prompt="hi")
    before = TokenUsage.objects.values().get()
    call_command("set_price", "llama3", "--input", "9", "--force", stdout=StringIO())

    assert TokenUsage.objects.values().get() == before


# --- Reading lists --------------------------------------------------------------------------------


def test_the_output_price_defaults_to_the_input_price() -> None:
    assert price_book.read_line("llama3", "0.002").rates == Rates(2_000_000, 2_000_000)
    assert price_book.read_line("llama3", "0.002", "").rates == Rates(2_000_000, 2_000_000)
    assert price_book.read_line("llama3", "0.002", "0").rates == Rates(2_000_000, 0)


def test_a_price_list_is_read_by_column_names() -> None:
    text = "model,input_per_1k,output_per_1k,note\nLLAMA3,0.002,,x\n\nhf.co/A/b:Q4,1,2\n"

    lines = price_book.read_list(text)

    assert [line.model for line in lines] == ["llama3:latest", "hf.co/a/b:q4"]


BAD_LISTS = {
    "empty": ("", "first line"),
    "no header": ("llama3,0.002,0.002\n", "first line"),
    "other columns": ("name,price\nllama3,1\n", "first line"),
    "no price": ("model,input_per_1k\nllama3,\n", "Line 2"),
    "short line": ("model,input_per_1k\nmistral,1\nllama3\n", "Line 3"),
    "bad price": ("model,input_per_1k\nllama3,cheap\n", "Line 2: 'cheap'"),
    "negative": ("model,input_per_1k\nllama3,-1\n", "Line 2"),
    "bad name": ("model,input_per_1k\na b,1\n", "Line 2: 'a b'"),
    "cloud": ("model,input_per_1k\nx:cloud,1\n", "cloud"),
    "bad output": ("model,input_per_1k,output_per_1k\nllama3,1,1e3\n", "Line 2"),
    "a field without end": ('model,input_per_1k\n"' + "x" * 200_000, "Line 1|Line 2"),
}


@pytest.mark.parametrize(("text", "reason"), BAD_LISTS.values(), ids=BAD_LISTS)
def test_an_invalid_price_list_is_rejected_with_the_line_number(text: str, reason: str) -> None:
    with pytest.raises(InvalidPrice, match=reason):
        price_book.read_list(text)


# --- seed_prices ----------------------------------------------------------------------------------


def run(command: str, *args: str) -> str:
    out = StringIO()
    call_command(command, *args, stdout=out)
    return out.getvalue()


def now_of(model: str) -> str | None:
    found = price_book.effective_prices(datetime.now(UTC)).get(model)
    return f"{found.prompt_per_1k:f}/{found.completion_per_1k:f}" if found else None


@pytest.fixture
def price_file(tmp_path: Path) -> Callable[[str], str]:
    def write(lines: str) -> str:
        path = tmp_path / "prices.csv"
        path.write_text(f"model,input_per_1k,output_per_1k\n{lines}", encoding="utf-8-sig")
        return str(path)

    return write


def test_the_bundled_list_prices_popular_models() -> None:
    run("seed_prices")

    assert now_of("llama3:latest") == "0.002/0.002"
    assert now_of("mistral:latest") == "0.0015/0.0015"
    assert ModelPrice.objects.count() > 20


def test_seeding_twice_adds_nothing() -> None:
    run("seed_prices")
    before = ModelPrice.objects.count()

    assert run("seed_prices").startswith("0 prices added")
    assert ModelPrice.objects.count() == before


def test_the_bundled_list_overrides_no_price() -> None:
    run("set_price", "llama3", "--input", "0.5")
    run("seed_prices")

    assert now_of("llama3:latest") == "0.5/0.5"


def test_a_price_file_adds_versions_for_prices_that_differ(
    price_file: Callable[[str], str],
) -> None:
    run("seed_prices")
    out = run("seed_prices", "--file", price_file("LLAMA3,0.01,0.02\nmistral,0.0015,\nown/m,1,2\n"))

    assert out.startswith("2 prices added, 1 left unchanged")
    assert (now_of("llama3:latest"), now_of("own/m:latest")) == ("0.01/0.02", "1/2")
    assert ModelPrice.objects.filter(model="llama3:latest").count() == 2
    assert ModelPrice.objects.filter(model="mistral:latest").count() == 1


@pytest.mark.parametrize("lines", ["llama3,1,1\nLLAMA3:latest,2,2\n", "llama3,1,1\nx,y,z\n"])
def test_an_invalid_price_file_changes_nothing(
    price_file: Callable[[str], str], lines: str
) -> None:
    with pytest.raises(CommandError):
        run("seed_prices", "--file", price_file(lines))
    assert not ModelPrice.objects.exists()


def test_an_unreadable_price_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "latin"):
        with pytest.raises(CommandError, match="Cannot read"):
            run("seed_prices", "--file", str(path))


# --- set_price ------------------------------------------------------------------------------------


def test_a_price_can_be_set_for_any_spelling_of_a_model() -> None:
    out = run("set_price", "Library/LLAMA3", "--input", "0.002", "--output", "0.004")

    assert now_of("llama3:latest") == "0.002/0.004"
    assert out.startswith("llama3:latest: 0.002 / 0.004 per 1K from ")


def test_a_price_may_be_zero() -> None:
    run("set_price", "llama3", "--input", "0")

    assert now_of("llama3:latest") == "0/0"


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("2999-12-01", datetime(2999, 12, 1, tzinfo=UTC)),
        ("2999-12-01T08:00+01:00", datetime(2999, 12, 1, 7, tzinfo=UTC)),
        ("2999-12-01T08:00Z", datetime(2999, 12, 1, 8, tzinfo=UTC)),
    ],
)
def test_a_price_can_start_later(text: str, begins: datetime) -> None:
    run("set_price", "llama3", "--input", "1", "--from", text)

    assert ModelPrice.objects.get().effective_from == begins
    assert now_of("llama3:latest") is None


@pytest.mark.parametrize(
    "args",
    [
        ["llama3"],
        ["llama3", "--input", "free"],
        ["llama3", "--input=-1"],
        ["llama3", "--input", "1", "--output", "1e3"],
        ["x:cloud", "--input", "1"],
        ["no name", "--input", "1"],
        ["llama3", "--input", "1", "--from", "2000-01-01"],
        ["llama3", "--input", "1", "--from", "tomorrow"],
    ],
    ids=str,
)
def test_an_invalid_price_is_not_set(args: list[str]) -> None:
    with pytest.raises(CommandError):
        run("set_price", *args)
    assert not ModelPrice.objects.exists()
