"""The primary PostgreSQL dies and its replica takes over: the gateway finds it by itself.

Two servers on this machine, the second a streaming replica. DATABASE_URL names both. An end that a
client saw is on both, because the primary waits for the replica at each commit. An asynchronous
replica lags, and what it has not received is lost with the primary.
"""

import contextlib
import time

import pytest

from tests.faults.load import Streams, ask_many, served_or_refused, whole_with_usage
from tests.harness.deployment import Deployment, Drivers, Producer, Seen, compare, deploy, until
from tests.servers.postgres import Postgres

pytestmark = pytest.mark.once  # It brings its own database, so one run is enough.

STREAMS = 8


def both(primary: Postgres, replica: Postgres) -> str:
    """libpq takes the host that can be written to."""
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{replica.port}"
    return f"postgres://postgres@{hosts}/gateway?target_session_attrs=read-write"


def wait_for_each_commit(primary: Postgres) -> None:
    """Make each commit wait until the replica has applied it."""
    for setting in ("synchronous_standby_names = '*'", "synchronous_commit = 'remote_apply'"):
        primary.execute(f"ALTER SYSTEM SET {setting}")
    primary.execute("SELECT pg_reload_conf()")
    state = "SELECT sync_state FROM pg_stat_replication"
    until(lambda: primary.execute(state) == [("sync",)], 60)


def test_a_replica_takes_over_and_nothing_that_was_seen_is_lost() -> None:
    producer = Producer()
    # The replica outlives the deployment, which is reconciled on it at the end.
    with contextlib.ExitStack() as last, deploy("postgresql") as deployment:
        assert deployment.postgres
        deployment.ollama.answer("/api/generate", producer)
        primary = deployment.postgres
        replica = last.enter_context(primary.replica())
        wait_for_each_commit(primary)
        deployment.url = both(primary, replica)
        with deployment.gateway() as server:
            seen = fail_over(deployment, server.url, primary, replica)
            deployment.url, deployment.postgres = replica.url("gateway"), replica
            until(lambda: not deployment.journal_lines(), 60)
        deployment.books_balance()
        compare(seen, producer, deployment.rows())


def fail_over(deployment: Deployment, url: str, primary: Postgres, replica: Postgres) -> list[Seen]:
    """Run streams and short requests during the failover; return what all clients saw."""
    with Drivers(lambda: url, deployment.key, STREAMS, lambda: (10, 0.02)) as drivers:
        until(lambda: sum(one.done for one in drivers.seen) > 2 * STREAMS, 60)
        streams = Streams(deployment, url, STREAMS, pieces=120)
        primary.crash()
        crashed = time.monotonic()
        refused = ask_many(url, deployment.key, 8)
        replica.promote()
        promoted = time.monotonic()
        back: list[Seen] = until(
            lambda: [one for one in ask_many(url, deployment.key, 1) if one.done], 30
        )
        took = time.monotonic() - promoted
        long = streams.wait()

    print(
        f"\npromoted {promoted - crashed:.1f} s after the crash, served {took:.1f} s later", end=""
    )
    whole_with_usage(long)
    served_or_refused(refused, at_least=0)
    served_or_refused(drivers.seen, at_least=2 * STREAMS)
    return drivers.seen + refused + back + long
