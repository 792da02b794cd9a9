"""The PostgreSQL that is written to dies, its replica takes over: the gateway finds it by itself.

Two servers on this machine, the second a replica by streaming. DATABASE_URL names both. What a
client saw end is on both, because the first waits for the second at each commit; a replica that is
not waited for lags, and what it has not heard of is lost with its primary.
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
    """Of two hosts libpq takes the one that can be written to."""
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{replica.port}"
    return f"postgres://postgres@{hosts}/gateway?target_session_attrs=read-write"


def wait_for_each_commit(primary: Postgres) -> None:
    """From now on a commit is done when the replica has it, and shows it."""
    for setting in ("synchronous_standby_names = '*'", "synchronous_commit = 'remote_apply'"):
        primary.execute(f"ALTER SYSTEM SET {setting}")
    primary.execute("SELECT pg_reload_conf()")
    state = "SELECT sync_state FROM pg_stat_replication"
    until(lambda: primary.execute(state) == [("sync",)], 20)


def test_a_replica_takes_over_and_nothing_that_was_seen_is_lost() -> None:
    producer = Producer()
    # The replica outlives the deployment, whose books are proved on it in the end.
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
            until(lambda: not deployment.journal_lines(), 20)
        deployment.books_balance()
        compare(seen, producer, deployment.rows())


def fail_over(deployment: Deployment, url: str, primary: Postgres, replica: Postgres) -> list[Seen]:
    """Streams and short requests meanwhile; what all of their clients saw."""
    with Drivers(lambda: url, deployment.key, STREAMS, lambda: (10, 0.02)) as drivers:
        until(lambda: sum(one.done for one in drivers.seen) > 2 * STREAMS, 30)
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
