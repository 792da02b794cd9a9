"""Running streams, many short requests at once, and assertions about their responses."""

import itertools
import threading
from collections.abc import Iterator
from decimal import Decimal

from tests.fakes.ollama import Received
from tests.faults.conftest import percentile
from tests.harness.deployment import Deployment, Producer, Seen, ask, until

# No two prompts of a deployment have the same number; drivers count from 1.
NUMBERS: Iterator[int] = itertools.count(10**5)


class Streams:
    """Some running streams, each in a thread. The model server has begun them all."""

    def __init__(
        self, deployment: Deployment, url: str, count: int, pieces: int, pause: float = 0.05
    ) -> None:
        self.seen: list[Seen] = []
        numbers = list(itertools.islice(NUMBERS, count))
        self._threads = [
            threading.Thread(
                target=lambda n=n: self.seen.append(ask(url, deployment.key, n, pieces, pause, 90))
            )
            for n in numbers
        ]
        before = len(deployment.ollama.requests)
        for thread in self._threads:
            thread.start()
        # Other clients may send requests meanwhile.
        until(lambda: numbers_in(deployment.ollama.requests[before:]).issuperset(numbers), 60)

    def wait(self) -> list[Seen]:
        for thread in self._threads:
            thread.join(90)
        assert len(self.seen) == len(self._threads), "a stream has no end"
        return self.seen


def numbers_in(requests: list[Received]) -> set[int]:
    prompts = (one.json["prompt"] for one in requests if one.path == "/api/generate")
    return {int(prompt.split()[0]) for prompt in prompts}


def ask_many(url: str, key: str, count: int) -> list[Seen]:
    """Send many short requests at once."""
    seen: list[Seen] = []

    def one(number: int) -> None:
        seen.append(ask(url, key, number, timeout=90))

    numbers = list(itertools.islice(NUMBERS, count))
    threads = [threading.Thread(target=one, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return seen


def refused_in_time(refused: list[Seen], seconds: float, most: float = 0) -> None:
    """Each is a 503 with Retry-After; 95 of 100 come within `seconds`, all within `most`."""
    assert refused
    for one in refused:
        assert (one.status, one.error) == (503, "database_unavailable"), one
        assert one.retry_after, one
    taken = [one.seconds for one in refused]
    print(f"\n{len(refused)} refused in {percentile(taken, 50):.1f} s (p50),", end=" ")
    print(f"{percentile(taken, 95):.1f} s (p95), {max(taken):.1f} s at most;", end=" ")
    assert percentile(taken, 95) < seconds and max(taken) < (most or seconds), sorted(taken)


def whole_with_usage(seen: list[Seen]) -> None:
    assert seen and all(one.done and one.usage for one in seen), seen


def whole_and_billed(deployment: Deployment, producer: Producer, seen: list[Seen]) -> None:
    """Each response is complete, and billed = delivered = reported = produced."""
    whole_with_usage(seen)
    deployment.books_balance()
    rows = deployment.rows()
    for one in seen:
        row, usage = rows[one.request_id], one.usage
        assert usage and row.outcome == "complete", (one, row)
        made = producer.produced[one.number].written
        assert row.completion_tokens == one.pieces == made == usage["completion_tokens"], (one, row)
        assert row.cost == Decimal(usage["cost"]), (one, row)


def served_or_refused(seen: list[Seen], at_least: int) -> None:
    """Running streams ended normally, and some new requests were rejected, not all."""
    for one in seen:
        assert one.done or (one.status == 503 and one.retry_after), one
    done = sum(one.done for one in seen)
    print(f"\n{done} answers whole, {len(seen) - done} requests refused", end=" ")
    assert done >= at_least, f"only {done} of {len(seen)} answers"
