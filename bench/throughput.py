"""`make bench`: the cost of a request in this gateway and in a peer, in alternating rounds.

One process sends the load and another is the model server, so the figures of a target are its own.
Absolute figures depend on the machine; compare the ratios of one run.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from bench import targets
from bench.load_client import Load
from bench.targets import Target, cpu_seconds, memory_mb
from tests.servers.gunicorn import ROOT

Figures = dict[str, float]

WHOLE_CLIENTS, STREAMS, STREAM_TOKENS, STREAM_PAUSE_MS = 16, 200, 100, 50


def main() -> None:
    options = _options()
    found: dict[str, list[Figures]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        measured = list(_targets(stack, options))
        for number in range(options.rounds):
            for target in measured:
                print(f"Round {number + 1} of {options.rounds}: {target.name} …", flush=True)
                found[target.name].append(_measure(target, options))
    show({name: _medians(rounds) for name, rounds in found.items()})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=["litellm"], help="installs it from PyPI and measures it")
    parser.add_argument("--peer-url", help="measures a peer that runs already")
    parser.add_argument("--peer-key", default="none")
    parser.add_argument("--peer-pid", type=int, default=0)
    parser.add_argument("--peer-model", default=targets.MODEL)
    parser.add_argument("--model-server-port", type=int, help="where the peer expects the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1500, help="whole responses in each round")
    return parser.parse_args()


def _targets(stack: contextlib.ExitStack, options: argparse.Namespace) -> Iterator[Target]:
    upstream = stack.enter_context(targets.model_server(options.model_server_port))
    yield upstream
    yield stack.enter_context(targets.gateway_on_sqlite(upstream.url))
    yield stack.enter_context(targets.gateway_on_postgresql(upstream.url))
    if options.peer:
        yield stack.enter_context(targets.litellm(upstream.url))
    if options.peer_url:
        peer = (options.peer_url, options.peer_key, options.peer_pid, options.peer_model)
        yield stack.enter_context(targets.running_peer(*peer))


# --- Loads ----------------------------------------------------------------------------------------


def _measure(target: Target, options: argparse.Namespace) -> Figures:
    warm_up = _load(target, clients=WHOLE_CLIENTS, requests=100)
    _run(warm_up)
    return (
        _whole(_load(target, clients=WHOLE_CLIENTS, requests=options.requests), target)
        | _first_chunk(_load(target, clients=1, requests=200, stream=True), target)
        | _streams(target)
    )


def _load(target: Target, **more: Any) -> Load:
    return Load(target.url, target.key, target.model, path=target.path, **more)


def _whole(load: Load, target: Target) -> Figures:
    used, done = _with_cpu(target, lambda: _run(load))
    good = len(done["whole"])
    return {
        "whole: CPU ms per request": used[0] / good * 1000,
        "whole: CPU ms per request in the database": used[1] / good * 1000,
        "whole: requests/s": good / done["seconds"],
        "whole: p50 ms": _percentile(done["whole"], 50),
        "whole: p99 ms": _percentile(done["whole"], 99),
        "whole: failed": done["failed"],
        "load client: CPU ms per request": done["client_cpu"] / good * 1000,
    }


def _first_chunk(load: Load, target: Target) -> Figures:
    done = _run(load)
    return {
        "one client: first chunk p50 ms": _percentile(done["first"], 50),
        "one client: first chunk p99 ms": _percentile(done["first"], 99),
    }


def _streams(target: Target) -> Figures:
    load = _load(
        target,
        clients=STREAMS,
        requests=STREAMS,
        tokens=STREAM_TOKENS,
        pause_ms=STREAM_PAUSE_MS,
        stream=True,
    )
    before = memory_mb(target.server())
    with _peak(lambda: memory_mb(target.server())) as peak:
        used, done = _with_cpu(target, lambda: _run(load))
    return {
        "200 streams: CPU us per chunk": sum(used) / max(done["chunks"], 1) * 1e6,
        "200 streams: first chunk p50 ms": _percentile(done["first"], 50),
        "200 streams: first chunk p99 ms": _percentile(done["first"], 99),
        "200 streams: memory MB": peak[0],
        "200 streams: kB per stream": (peak[0] - before) * 1000 / STREAMS,
        "200 streams: failed": done["failed"],
    }


def _run(load: Load) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "bench/load_client.py"), json.dumps(asdict(load))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    if not found["whole"]:
        raise RuntimeError(f"No request to {load.url} succeeded: {found['errors']}")
    return found


def _with_cpu(target: Target, load: Callable[[], dict[str, Any]]) -> tuple[list[float], Any]:
    """Run a load; return the CPU seconds of the server and of its database, and what it measured."""
    servers = [target.server(), target.database()]
    before = [cpu_seconds(one) for one in servers]
    done = load()
    # New database connections are new processes.
    servers = [target.server(), target.database()]
    return [cpu_seconds(one) - b for one, b in zip(servers, before, strict=True)], done


@contextlib.contextmanager
def _peak(read: Callable[[], float]) -> Iterator[list[float]]:
    """Read a figure every 0.2 s and keep the highest."""
    highest, over = [read()], threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            highest[0] = max(highest[0], read())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield highest
    finally:
        over.set()
        thread.join()


def _percentile(seconds: list[float], percent: int) -> float:
    """Return a percentile in milliseconds."""
    return sorted(seconds)[min(len(seconds) - 1, len(seconds) * percent // 100)] * 1000


# --- The table ------------------------------------------------------------------------------------


def _medians(rounds: list[Figures]) -> Figures:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def show(found: dict[str, Figures]) -> None:
    """Print each figure of each target, and its ratio to the peer's."""
    names, peer = list(found), list(found)[-1]
    compares = peer in ("litellm", "peer")
    print(f"\n{os.cpu_count()} cores; medians\n")
    print(f"{'':<46}" + "".join(f"{name:>22}" for name in names))
    for figure in found[names[0]]:
        row = "".join(f"{_cell(found, name, figure, peer, compares):>22}" for name in names)
        print(f"{figure:<46}{row}")
    if compares:
        print(f"\nIn brackets: the figure divided by that of {peer}.")


def _cell(found: dict[str, Figures], name: str, figure: str, peer: str, compares: bool) -> str:
    value, theirs = found[name][figure], found[peer][figure]
    ratio = f" [{value / theirs:.2f}]" if compares and name != peer and theirs else ""
    return f"{value:,.2f}{ratio}"


if __name__ == "__main__":
    main()
