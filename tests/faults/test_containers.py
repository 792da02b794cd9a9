"""Gateways that share a database do not settle each other's running responses: neither two
containers with one host name, nor a host with a wrong clock. A paused host's responses, settled
meanwhile by another host, are billed in full.

Linux namespaces make the second gateway a container, or a host with another boot id.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from billing.money import from_units
from tests.faults.load import Streams, whole_and_billed, whole_with_usage
from tests.harness.deployment import Deployment, Producer, Seen, deploy, until
from tests.servers import clock, container
from tests.servers.clock import Clock
from tests.servers.container import Container, paused
from tests.servers.gunicorn import Gunicorn

pytestmark = [
    pytest.mark.once,  # It brings its own database, so one run is enough.
    pytest.mark.skipif(bool(container.MISSING), reason=container.MISSING),
]

# Seconds, so that a renewal at a third of it may be late on a busy machine.
LEASE = 5
# gunicorn's timeout for a worker that does not notify its master.
PATIENCE = ["--timeout", "4"]
STREAMS = 4


@pytest.fixture(scope="module")
def producer() -> Producer:
    return Producer()


@pytest.fixture(scope="module")
def shared(producer: Producer) -> Iterator[Deployment]:
    with deploy("postgresql", HOLD_LEASE_SECONDS=str(LEASE)) as made:
        made.ollama.answer("/api/generate", producer)
        yield made


@pytest.fixture(scope="module")
def here(shared: Deployment) -> Iterator[Gunicorn]:
    """The first gateway, in this process's namespaces."""
    with shared.gateway() as server:
        yield server


def a_container(shared: Deployment, **env: str) -> Container:
    """A second gateway on this machine, with this machine's host name."""
    own = {**shared.env, **env, "JOURNAL_DIR": str(shared.home / "container-journal")}
    return Container(own, args=PATIENCE)


def another_host(shared: Deployment, **env: str) -> Container:
    """A second gateway with another boot id, so that only leases say whether it runs."""
    boot_id = shared.home / "boot-id"
    boot_id.write_text(str(uuid.uuid4()))
    own = {**shared.env, **env, "JOURNAL_DIR": str(shared.home / "host-journal")}
    return Container(own, host_name="elsewhere", boot_id=boot_id, args=PATIENCE)


def streams_of_both(shared: Deployment, one: Gunicorn, other: Gunicorn) -> list[Seen]:
    """Serve streams by both, once both trust leases."""
    time.sleep(LEASE / 2 + 1)
    streams = [Streams(shared, server.url, STREAMS, pieces=120) for server in (one, other)]
    return [seen for some in streams for seen in some.wait()]


def hosts(shared: Deployment) -> set[tuple[str, str, str]]:
    """Host name, boot id and PID namespace of the processes that served."""
    workers = shared.query("SELECT DISTINCT worker FROM billing_hold")
    return {tuple(name.split("/")[:3]) for (name,) in workers}


def test_two_containers_with_one_host_name_do_not_settle_each_others_holds(
    shared: Deployment, producer: Producer, here: Gunicorn
) -> None:
    with a_container(shared) as other:
        seen = streams_of_both(shared, here, other)
        logs = here.log() + other.log()

    names, boots, namespaces = map(set, zip(*hosts(shared), strict=True))
    assert (len(names), len(boots), len(namespaces)) == (1, 1, 2)
    assert "was abandoned" not in logs
    whole_and_billed(shared, producer, seen)


@pytest.mark.skipif(bool(clock.MISSING), reason=clock.MISSING)
def test_a_host_with_a_clock_ahead_does_not_settle_the_others_holds(
    shared: Deployment, producer: Producer, here: Gunicorn, tmp_path: Path
) -> None:
    """31 s, more than the usual lease. To that host the other clock is behind."""
    ahead = Clock(tmp_path)
    ahead.set(31)
    with another_host(shared, **ahead.env) as other:
        seen = streams_of_both(shared, here, other)
        logs = here.log() + other.log()

    assert "elsewhere" in {name for name, _boot, _namespace in hosts(shared)}
    assert "was abandoned" not in logs
    whole_and_billed(shared, producer, seen)


@pytest.mark.parametrize("second", [a_container, another_host])
def test_a_stream_that_continues_after_a_pause_is_billed_in_full(
    shared: Deployment,
    producer: Producer,
    here: Gunicorn,
    second: Callable[[Deployment], Container],
) -> None:
    """A host is paused for longer than its leases and than gunicorn's timeout; the other host
    settles its streams meanwhile."""
    before = here.log().count("was abandoned")
    with second(shared) as other:
        streams = Streams(shared, other.url, STREAMS, pieces=120)
        time.sleep(LEASE / 2)  # A renewal has noted what was produced.
        with paused(other.pids()):
            time.sleep(LEASE)
            until(lambda: not shared.open_holds(), 4 * LEASE)
        seen = streams.wait()
        log = other.log()

    assert "WORKER TIMEOUT" not in log
    whole_with_usage(seen)
    assert here.log().count("was abandoned") == before + STREAMS
    assert log.count("went on after it was settled as expired") == STREAMS, log
    shared.books_balance()
    for one in seen:
        adjusted_to_what_was_told(shared, producer, one, log)


def adjusted_to_what_was_told(shared: Deployment, producer: Producer, one: Seen, log: str) -> None:
    """Two rows, the second linked to the first, add up to what was produced, delivered and
    reported. The error log has both amounts."""
    (first, _), (second, _) = rows = booked(shared, one.request_id)
    assert one.usage and first < second
    cost = sum(units for units, _tokens in rows)
    assert from_units(cost) == Decimal(one.usage["cost"])
    assert f"{from_units(first)} was billed, it cost {from_units(cost)}" in log
    made = producer.produced[one.number].written
    tokens = sum(tokens for _units, tokens in rows)
    assert tokens == made == one.pieces == one.usage["completion_tokens"]


def booked(shared: Deployment, request_id: str) -> list[tuple[int, int]]:
    """Cost in smallest units and completion tokens of each row of a request."""
    found = shared.query(
        "SELECT cost, completion_tokens FROM token_usages WHERE"
        f" COALESCE(adjusts, request_id) = '{uuid.UUID(request_id)}' ORDER BY adjusts NULLS FIRST"
    )
    return [(int(cost), int(tokens)) for cost, tokens in found]
