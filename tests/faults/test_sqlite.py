"""SQLite is locked by another writer, or its disk is full: nothing is lost or billed twice."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.load import Streams, ask_many, refused_in_time, whole_with_usage
from tests.harness.deployment import (
    Deployment,
    Producer,
    Seen,
    compare,
    deploy,
    fill,
    small_disk,
    until,
)

pytestmark = pytest.mark.once  # It brings its own databases, so one run is enough.

STREAMS = 8


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def embedded(producer: Producer) -> Iterator[Deployment]:
    with deploy("sqlite") as made:
        made.ollama.answer("/api/generate", producer)
        yield made


@contextlib.contextmanager
def locked(deployment: Deployment) -> Iterator[None]:
    """Hold the write lock from another connection."""
    path = deployment.url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        yield
        writer.execute("ROLLBACK")


def test_a_lock_held_for_a_while_is_waited_for(embedded: Deployment, producer: Producer) -> None:
    asked: list[Seen] = []
    with embedded.gateway() as server:
        streams = Streams(embedded, server.url, STREAMS, pieces=20)
        with locked(embedded):
            crowd = threading.Thread(
                target=lambda: asked.extend(ask_many(server.url, embedded.key, 8))
            )
            crowd.start()
            time.sleep(3)
        crowd.join(60)
        seen = streams.wait()

    whole_with_usage(seen)
    whole_with_usage(asked)
    embedded.books_balance()
    compare(seen + asked, producer, embedded.rows())


def test_a_lock_held_too_long_refuses_new_requests_and_keeps_running_ones(
    embedded: Deployment, producer: Producer
) -> None:
    with embedded.gateway() as server:
        streams = Streams(embedded, server.url, STREAMS, pieces=20)
        with locked(embedded):
            refused = ask_many(server.url, embedded.key, 8)
            seen = streams.wait()
        until(lambda: not embedded.journal_lines(), 60)
        refused_in_time(refused, 30)
        whole_with_usage(seen)
        embedded.books_balance()
        compare(refused + seen, producer, embedded.rows())


@pytest.mark.parametrize("journal_too", [False, True])
def test_a_full_disk_refuses_new_requests_and_loses_nothing(
    tmp_path: Path, producer: Producer, journal_too: bool
) -> None:
    """If the journal's disk is full too, settlements wait in memory, and responses end without
    `usage`, which would promise what is on no disk."""
    with small_disk(tmp_path / "disk", 8) as disk:
        elsewhere: dict[str, Any] = {}
        if not journal_too:
            elsewhere["JOURNAL_DIR"] = str(tmp_path / "journal")
        with deploy("sqlite", home=disk, **elsewhere) as deployment:
            deployment.ollama.answer("/api/generate", producer)
            with deployment.gateway() as server:
                whole_with_usage(ask_many(server.url, deployment.key, 1))
                streams = Streams(deployment, server.url, STREAMS, pieces=30)
                ballast = fill(disk, 0)
                seen = streams.wait()
                refused = ask_many(server.url, deployment.key, 4)
                ballast.unlink()
                until(lambda: ask_many(server.url, deployment.key, 1)[0].done)
                deployment.books_balance()

            refused_in_time([one for one in refused if not one.done], 20)
            assert len(seen) == STREAMS and all(one.done for one in seen)
            assert deployment.query("PRAGMA integrity_check") == [("ok",)]
            rows = deployment.rows()
            for one in seen:
                row, made = rows[one.request_id], producer.produced[one.number]
                assert (row.prompt_tokens, row.completion_tokens) == (made.prompt_tokens, 30)
                assert one.usage or journal_too
