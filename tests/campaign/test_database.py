"""The database goes away, hangs, fills up, is locked or fails: nothing is lost or billed twice.

Each test stops, fills or cuts a database of its own.
"""

import contextlib
import itertools
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.backends.signals import connection_created

from billing import journal, keeper, ledger
from billing.models import Hold, ModelPrice, TokenUsage
from gateway.metering import CountSource, Outcome, Usage
from tests.campaign.conftest import books_balance, thread_count
from tests.campaign.site import Drivers, Producer, Seen, Site, ask, compare, fill, site, until
from tests.conftest import Caller
from tests.fakes.ollama import FakeOllama
from tests.servers.gunicorn import Gunicorn
from tests.servers.postgres import Postgres

once = pytest.mark.sqlite_only  # Brings its own database, so one run is enough.

STREAMS = 8
DOWN_SECONDS = float(os.environ.get("DOWN_SECONDS", "12"))
RESTARTS = int(os.environ.get("RESTARTS", "20"))
NUMBERS = itertools.count(1)


class Streams:
    """Some streams under way, each in a thread."""

    def __init__(self, place: Site, server: Gunicorn, pieces: int, pause: float) -> None:
        self.seen: list[Seen] = []
        self._ask = lambda n: self.seen.append(ask(server.url, place.key, n, pieces, pause))
        numbers = [next(NUMBERS) for _ in range(STREAMS)]
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in numbers]
        before = len(place.ollama.requests)
        for thread in self._threads:
            thread.start()
        place.ollama.wait_for(before + STREAMS, timeout=20)

    def wait(self) -> list[Seen]:
        for thread in self._threads:
            thread.join(90)
        return self.seen


def ask_many(server: Gunicorn, key: str, count: int) -> list[Seen]:
    """Ask for short answers, all at once."""
    seen: list[Seen] = []

    def one() -> None:
        seen.append(ask(server.url, key, next(NUMBERS), timeout=90))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return seen


def refused_in_time(refused: list[Seen], seconds: float) -> None:
    for one in refused:
        assert (one.status, one.error) == (503, "database_unavailable"), one
        assert one.retry_after and one.seconds < seconds, one
    slowest = max(one.seconds for one in refused)
    print(f"\n{len(refused)} new requests refused in at most {slowest:.1f} s", end=" ")


def whole_with_usage(seen: list[Seen]) -> None:
    assert len(seen) == STREAMS and all(one.done and one.usage for one in seen), seen


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def place(producer: Producer) -> Iterator[Site]:
    """On PostgreSQL."""
    with site("postgresql") as made:
        made.ollama.answer("/api/generate", producer)
        yield made


@pytest.fixture
def server(place: Site) -> Iterator[Gunicorn]:
    with place.gateway() as running:
        # Both workers have met the database, and have connections in their pools.
        assert all(one.done for one in ask_many(running, place.key, 16))
        yield running


def postgres_of(place: Site) -> Postgres:
    assert place.postgres
    return place.postgres


# --- PostgreSQL goes away ------------------------------------------------------------------------


@once
def test_streams_end_well_while_the_database_is_down(
    place: Site, server: Gunicorn, producer: Producer
) -> None:
    earlier = place.rows()
    streams = Streams(place, server, pieces=80, pause=0.05)
    postgres_of(place).go_down()
    went = time.monotonic()
    refused = ask_many(server, place.key, 40)
    threads = sum(map(thread_count, server.worker_pids()))
    seen = streams.wait()
    kept = place.journal_lines()
    time.sleep(max(0.0, DOWN_SECONDS - (time.monotonic() - went)))
    postgres_of(place).come_up()
    back = time.monotonic()
    recovered = until(lambda: [s for s in [ask(server.url, place.key, next(NUMBERS))] if s.done])
    until(lambda: not place.journal_lines())
    print(f"\n{threads} threads; {kept} endings in the journal;", end=" ")
    print(f"drained {time.monotonic() - back:.1f} s after its return", end=" ")

    refused_in_time(refused, 6)
    whole_with_usage(seen)
    place.books_balance()
    rows = {name: row for name, row in place.rows().items() if name not in earlier}
    compare(seen + recovered, producer, rows)


@once
def test_restarts_under_load_lose_nothing(
    place: Site, server: Gunicorn, producer: Producer
) -> None:
    earlier = place.rows()
    with Drivers(lambda: server.url, place.key, STREAMS, lambda: (10, 0.02)) as drivers:
        for _ in range(RESTARTS):
            postgres_of(place).restart()
            time.sleep(1)

    place.books_balance()
    rows = {name: row for name, row in place.rows().items() if name not in earlier}
    print(f"\n{RESTARTS} restarts, {sum(one.done for one in drivers.seen)} streams", end=" ")
    compare(drivers.seen, producer, rows)
    # What had begun went on to its end; only new requests were refused.
    assert all(one.done or one.status == 503 for one in drivers.seen)


@once
def test_cut_connections_are_not_noticed(place: Site, server: Gunicorn, producer: Producer) -> None:
    """pg_terminate_backend while streams run: whoever settles next meets a dead connection."""
    earlier = place.rows()
    with Drivers(lambda: server.url, place.key, STREAMS, lambda: (10, 0.02)) as drivers:
        for _ in range(30):
            postgres_of(place).cut_connections("gateway")
            time.sleep(0.1)

    place.books_balance()
    rows = {name: row for name, row in place.rows().items() if name not in earlier}
    compare(drivers.seen, producer, rows)
    assert all(one.done or one.status == 503 for one in drivers.seen)


@once
def test_a_hung_database_is_refused_in_time_and_threads_come_free(
    place: Site, server: Gunicorn, producer: Producer
) -> None:
    """SIGSTOP: connections stay open, and nobody answers on them."""
    earlier = place.rows()
    streams = Streams(place, server, pieces=40, pause=0.05)
    postgres_of(place).hang()
    try:
        refused = ask_many(server, place.key, 40)
        refused += ask_many(server, place.key, 4)
        seen = streams.wait()
        alive = ask_health(server)
    finally:
        postgres_of(place).resume()

    until(lambda: ask(server.url, place.key, next(NUMBERS)).done, 15)
    refused_in_time(refused, 8)
    slowest = max(one.seconds for one in seen)
    print(f"the slowest of the streams of 2 s took {slowest:.1f} s", end=" ")
    assert alive < 3
    whole_with_usage(seen)
    place.books_balance()
    rows = {name: row for name, row in place.rows().items() if name not in earlier}
    compare(seen, producer, rows)


def ask_health(server: Gunicorn) -> float:
    began = time.monotonic()
    assert server._is_healthy()
    return time.monotonic() - began


@once
def test_a_database_that_has_become_read_only_is_like_one_that_is_away(
    place: Site, server: Gunicorn, producer: Producer
) -> None:
    """As after a failover to a standby."""
    streams = Streams(place, server, pieces=40, pause=0.05)
    read_only = "ALTER DATABASE gateway SET default_transaction_read_only = "
    postgres_of(place).execute(read_only + "on")
    postgres_of(place).cut_connections("gateway")
    refused = ask_many(server, place.key, 8)
    seen = streams.wait()
    postgres_of(place).execute(read_only + "off")
    postgres_of(place).cut_connections("gateway")

    refused_in_time(refused, 6)
    whole_with_usage(seen)
    until(lambda: not place.journal_lines())
    place.books_balance()


# --- SQLite is locked or full --------------------------------------------------------------------


@pytest.fixture
def embedded(producer: Producer) -> Iterator[Site]:
    with site("sqlite") as made:
        made.ollama.answer("/api/generate", producer)
        yield made


@contextlib.contextmanager
def locked(place: Site) -> Iterator[None]:
    """Another writer holds the lock."""
    path = place.url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        yield
        writer.execute("ROLLBACK")


@once
def test_a_lock_held_for_a_while_is_waited_for(embedded: Site, producer: Producer) -> None:
    with embedded.gateway() as server:
        streams = Streams(embedded, server, pieces=20, pause=0.05)
        with locked(embedded):
            asked = [threading.Thread(target=ask_many, args=(server, embedded.key, 8))]
            asked[0].start()
            time.sleep(3)
        asked[0].join(60)
        seen = streams.wait()

    whole_with_usage(seen)
    embedded.books_balance()
    assert len(embedded.rows()) == STREAMS + 8


@once
def test_a_lock_held_too_long_refuses_what_is_new_and_keeps_what_is_under_way(
    embedded: Site, producer: Producer
) -> None:
    with embedded.gateway() as server:
        streams = Streams(embedded, server, pieces=20, pause=0.05)
        with locked(embedded):
            refused = ask_many(server, embedded.key, 8)
            seen = streams.wait()
        until(lambda: not embedded.journal_lines(), 30)
        refused_in_time(refused, 30)
        whole_with_usage(seen)
        embedded.books_balance()
        compare(seen, producer, embedded.rows())


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own in memory; it ends with the test."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@once
@pytest.mark.parametrize("journal_too", [False, True])
def test_a_full_disk_refuses_what_is_new_and_loses_nothing(
    tmp_path: Path, producer: Producer, journal_too: bool
) -> None:
    """Where the journal's disk is full as well, endings wait in memory; the answer then ends
    without its `usage`, since that would promise what is not on any disk."""
    with small_disk(tmp_path / "disk", 8) as disk:
        elsewhere = {} if journal_too else {"JOURNAL_DIR": str(tmp_path / "journal")}
        with site("sqlite", home=disk, **elsewhere) as place:
            place.ollama.answer("/api/generate", producer)
            with place.gateway() as server:
                assert ask(server.url, place.key, next(NUMBERS)).done
                streams = Streams(place, server, pieces=30, pause=0.05)
                ballast = fill(disk, 0)
                seen = streams.wait()
                refused = ask_many(server, place.key, 4)
                ballast.unlink()
                until(lambda: ask(server.url, place.key, next(NUMBERS)).done)
                place.books_balance()

            refused_in_time([one for one in refused if not one.done], 8)
            assert len(seen) == STREAMS and all(one.done for one in seen)
            assert place.query("PRAGMA integrity_check") == [("ok",)]
            rows = place.rows()
            for one in seen:
                row, made = rows[one.request_id], producer.produced[one.number]
                assert (row.prompt_tokens, row.completion_tokens) == (made.prompt_tokens, 30)
                assert one.usage or journal_too


# --- Faults injected, on the tests' own database -------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, settings: Any) -> Path:
    settings.JOURNAL_DIR = str(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("priced", "ollama", "folder")
@pytest.mark.parametrize("word", ["deadlock detected", "could not serialize access"])
def test_a_transaction_that_lost_is_tried_again(
    alice: Caller, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    honest, failures = ledger._roll_up, [OperationalError(word), OperationalError(word)]

    def fail_twice(row: TokenUsage) -> None:
        if failures:
            raise failures.pop()
        honest(row)

    monkeypatch.setattr(ledger, "_roll_up", fail_twice)

    answer = alice.post("/generate", model="llama3", prompt="hi").json()

    assert f"{TokenUsage.objects.get().cost:f}" == answer["usage"]["cost"] and not failures
    books_balance()


@pytest.mark.usefixtures("priced", "ollama", "folder")
def test_a_commit_whose_answer_was_lost_is_billed_once_and_told(
    alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection broke after the database had committed; the next try finds the row."""
    honest, times = ledger.settle, [0]

    def commit_and_fail(*args: Any, **kwargs: Any) -> Any:
        row, times[0] = honest(*args, **kwargs), times[0] + 1
        if times[0] == 1:
            raise OperationalError("server closed the connection unexpectedly")
        return row

    monkeypatch.setattr(ledger, "settle", commit_and_fail)

    answer = alice.post("/generate", model="llama3", prompt="hi").json()

    assert f"{TokenUsage.objects.get().cost:f}" == answer["usage"]["cost"] and times == [2]


@pytest.mark.usefixtures("priced", "folder")
def test_a_hold_whose_commit_was_not_heard_of_is_given_back(
    alice: Caller, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = ledger.hold

    def commit_and_fail(*args: Any) -> Any:
        honest(*args)
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(ledger, "hold", commit_and_fail)

    response = alice.post("/generate", model="llama3", prompt="hi")
    assert (response.status_code, response["Retry-After"]) == (503, "2") and not ollama.requests
    keeper.Keeper().tick()

    assert Hold.objects.get().state == "released" and alice.wallet.held == 0
    books_balance()


def ending(hold: Hold, prompt: int = 3) -> journal.Ending:
    usage = Usage(prompt, 4, CountSource.UPSTREAM, started=True)
    return journal.Ending(hold.request_id, usage, Outcome.COMPLETE, billed=True)


@pytest.mark.usefixtures("folder")
def test_one_ending_that_the_books_refuse_does_not_keep_the_others(
    alice: Caller, priced: ModelPrice
) -> None:
    from tests.billing.test_ledger import reserve

    bad, good = reserve(alice, priced), reserve(alice, priced)
    journal.write(ending(bad, prompt=-1))
    journal.write(ending(good))

    keeper.Keeper().tick()

    assert TokenUsage.objects.get().request_id == good.request_id


def test_a_replay_that_failed_is_not_overwritten_by_the_next(folder: Path) -> None:
    """The database came back for a moment only, and answers went on ending."""
    first, second = (ending(Hold(request_id=ledger_id())) for _ in range(2))

    def fail(_ending: journal.Ending) -> None:
        raise OperationalError

    journal.write(first)
    with pytest.raises(OperationalError):
        journal.replay(fail)
    journal.write(second)
    found: list[journal.Ending] = []
    journal.replay(found.append)

    assert sorted(found, key=str) == sorted([first, second], key=str)


@pytest.mark.usefixtures("db")
def test_half_a_line_of_a_full_disk_spoils_no_other(folder: Path, alice: Caller) -> None:
    hold = Hold(request_id=ledger_id())
    journal.write(ending(hold))
    [own] = folder.iterdir()
    own.write_text(own.read_text() + '{"request_id": "01')
    journal.write(ending(hold))
    found: list[journal.Ending] = []

    journal.replay(found.append)

    assert found == [ending(hold), ending(hold)]


def ledger_id() -> Any:
    from gateway.request_ids import new_request_id

    return new_request_id()


def test_what_no_disk_takes_waits_in_memory(tmp_path: Path, settings: Any) -> None:
    (tmp_path / "file").touch()
    settings.JOURNAL_DIR = str(tmp_path / "file")  # No folder can be made there.
    kept = ending(Hold(request_id=ledger_id()))
    with pytest.raises(OSError):
        journal.write(kept)
    settings.JOURNAL_DIR = str(tmp_path / "folder")
    found: list[journal.Ending] = []

    assert journal.replay(found.append) == 1 and found == [kept]
    assert journal.replay(found.append) == 0


@once
@pytest.mark.usefixtures("priced", "transactional_db", "folder")
def test_a_database_file_that_may_not_grow_is_like_a_full_disk(
    alice: Caller, ollama: FakeOllama
) -> None:
    def stop_growing(connection: Any, **_kwargs: Any) -> None:
        connection.cursor().execute("PRAGMA max_page_count = 1")  # It becomes the size it has.

    connection.close()
    connection_created.connect(stop_growing)
    try:
        statuses = {
            alice.post("/generate", model="llama3", prompt="hi").status_code for _ in range(200)
        }
    finally:
        connection_created.disconnect(stop_growing)
        connection.close()
    assert 503 in statuses and statuses <= {200, 503}
    keeper.Keeper().tick()

    assert alice.post("/generate", model="llama3", prompt="hi").status_code == 200
    books_balance()


def test_who_can_open_no_file_thinks_nobody_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a worker short of files would settle what its living sibling is serving."""
    from billing import workers

    sibling = workers.local_identity().replace(str(os.getpid()), "1")

    def fail(*_args: Any, **_kwargs: Any) -> str:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_text", fail)

    assert not workers.is_known_dead_here(sibling)
    assert not workers.is_known_dead_here(workers.local_identity())
