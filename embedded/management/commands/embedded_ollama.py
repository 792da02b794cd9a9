"""Serve a small real model where no Ollama is installed."""

import errno
from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from embedded.model import NAME, EngineMissing
from embedded.server import EmbeddedServer, listen, require_wheels


class Command(BaseCommand):
    help = (
        f"Serve {NAME} (SmolLM2-135M-Instruct on llama.cpp) with Ollama's API, to try the "
        "gateway where no Ollama is installed. The model is real but small: it runs on the "
        "processor, and it does not replace Ollama in production. "
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
            help=f"responses generated at the same time, 1 to 32; more are queued {show}",
        )

    def handle(self, *, host: str, port: int, parallel: int, **options: Any) -> None:
        try:
            require_wheels()
            listener = listen(host, port)
        except EngineMissing as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"Cannot listen on {host}:{port}: {_reason(error)}.") from error
        EmbeddedServer(listener, parallel).run()


def _reason(error: OSError) -> str:
    if error.errno != errno.EADDRINUSE:
        return error.strerror or str(error)
    return (
        "the port is taken. If an Ollama listens there, you do not need this command; "
        "otherwise choose another --port"
    )


def _port(text: str) -> int:
    return _between(text, 0, 65535)


def _parallel(text: str) -> int:
    return _between(text, 1, 32)


def _between(text: str, low: int, high: int) -> int:
    if not text.isdigit() or not low <= int(text) <= high:
        raise ArgumentTypeError(f"{text} is not a number from {low} to {high}")
    return int(text)
