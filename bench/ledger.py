"""`python -m bench.ledger`: what a hold with its settlement costs, without HTTP.

The parent process starts the database, and one child for each number of threads runs the pairs. All
threads use one account with a wallet and a monthly cap, so they write the same budget rows. The
database waits for the disk as it does in production.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from bench.targets import MODEL, SECRET_KEY, cpu_seconds, postgres_pids
from tests.servers.gunicorn import ROOT, manage
from tests.servers.postgres import Postgres

THREADS = (1, 64)
# Not counted: the first pairs open connections and compile statements.
WARM_UP = 200
UNLIMITED = 10**15


def main() -> None:
    options = _options()
    if options.threads:
        print(json.dumps(measure(options.threads, options.pairs)))
        return
    for name in options.database or list(DATABASES):
        with DATABASES[name]() as env:
            _set_up(env)
            for threads in THREADS:
                print(_line(name, threads, options.pairs, env), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", action="append", choices=list(DATABASES))
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--threads", type=int, help="measure in this process, and print JSON")
    return parser.parse_args()


@contextlib.contextmanager
def sqlite() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        yield _env(f"sqlite:///{home}/db.sqlite3")


@contextlib.contextmanager
def postgresql() -> Iterator[dict[str, str]]:
    with Postgres(fsync=True) as server:
        yield _env(server.url())


DATABASES: dict[str, Callable[[], contextlib.AbstractContextManager[dict[str, str]]]] = {
    "sqlite": sqlite,
    "postgresql": postgresql,
}


def _env(url: str) -> dict[str, str]:
    return {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "SECRET_KEY": SECRET_KEY,
        "DATABASE_URL": url,
        "DATABASE_POOL_SIZE": "8",
    }


def _set_up(env: dict[str, str]) -> None:
    for command in (
        ("migrate", "--verbosity", "0"),
        ("set_price", MODEL, "--input", "0.001", "--output", "0.002"),
        ("create_account", "Bench", "--credit", "100000"),
        ("issue_key", "Bench", "--name", "bench"),
    ):
        done = manage(env, *command)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")


def _line(name: str, threads: int, pairs: int, env: dict[str, str]) -> str:
    command = [sys.executable, "-m", "bench.ledger", "--threads", str(threads)]
    before = cpu_seconds(postgres_pids())
    done = subprocess.run(
        [*command, "--pairs", str(pairs)],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
    )
    found = json.loads(done.stdout)
    in_database = (cpu_seconds(postgres_pids()) - before) / (pairs + WARM_UP)
    return (
        f"{name:<12}{threads:>3} threads {found['pairs/s']:>9,.0f} pairs/s"
        f"{found['cpu']:>9.2f} ms CPU per pair{in_database * 1000:>9.2f} ms in the database"
        f"{found['p50']:>9.2f} ms p50{found['p99']:>9.2f} ms p99"
    )


# --- In the child ---------------------------------------------------------------------------------


def measure(threads: int, pairs: int) -> dict[str, float]:
    """Run pairs in threads that start together; return the rate, the CPU and the times in ms."""
    pair = _pair()
    _in_threads(threads, WARM_UP, pair)
    began, cpu = time.monotonic(), time.process_time()
    times = sorted(_in_threads(threads, pairs, pair))
    seconds, used = time.monotonic() - began, time.process_time() - cpu
    return {
        "pairs/s": pairs / seconds,
        "cpu": used / pairs * 1000,
        "p50": times[len(times) // 2] * 1000,
        "p99": times[len(times) * 99 // 100] * 1000,
    }


def _pair() -> Callable[[], None]:
    """Return what opens and closes a meter, as one request does."""
    from accounts.models import ApiKey
    from billing import ledger
    from billing.meter import LedgerMeter
    from billing.models import Budget
    from gateway.http.request_ids import new_request_id
    from gateway.metering import CountSource, Demand, Operation, Outcome, Usage

    key = ApiKey.objects.select_related("account").get()
    cap = ledger.open_budget(key.account, Budget.Unit.TOKENS, Budget.Window.MONTH)
    ledger.set_limit(cap, UNLIMITED)
    demand = Demand(key.account_id, key.pk, Operation.CHAT, MODEL, 100, 25, 100)
    usage = Usage(20, 30, CountSource.UPSTREAM, started=True, delivered=True)

    def pair() -> None:
        meter = LedgerMeter(new_request_id())
        meter.open(demand)
        if meter.close(usage, Outcome.COMPLETE) is None:
            raise RuntimeError("The settlement was not written.")

    return pair


def _in_threads(threads: int, pairs: int, pair: Callable[[], None]) -> list[float]:
    """Run this many pairs in all; return the seconds that each took."""
    times: list[float] = []
    left = iter(range(pairs))
    start = threading.Barrier(threads)

    def run() -> None:
        start.wait(30)
        while next(left, None) is not None:
            began = time.monotonic()
            pair()
            times.append(time.monotonic() - began)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if len(times) != pairs:
        raise RuntimeError(f"{pairs - len(times)} pairs of {pairs} failed.")
    return times


if __name__ == "__main__":
    main()
