"""A gateway as it runs in production: gunicorn with two workers, on the test database."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.conf import settings as django_settings
from django.db import connection

from billing.models import TokenUsage
from tests.fakes.ollama import FakeOllama
from tests.servers.client import RawClient
from tests.servers.gunicorn import Gunicorn


@dataclass
class RunningGateway:
    """A running gateway and the model server behind it."""

    server: Gunicorn
    ollama: FakeOllama
    env: dict[str, str]

    def client(self, timeout: float = 10.0) -> RawClient:
        return RawClient(self.server.url, timeout=timeout)


# Short enough to test, but longer than the second within which a disconnect must be noticed.
DEADLINES = {
    "UPSTREAM_FIRST_LINE_SECONDS": "4",
    "UPSTREAM_SILENCE_SECONDS": "3",
    "UPSTREAM_TOTAL_SECONDS": "30",
    "GATEWAY_THREADS": "64",
    "HOLD_LEASE_SECONDS": "3",
}


def database_url() -> str:
    """Return the URL of the test database."""
    database = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{database['NAME']}"
    user, host = f"{database['USER']}:{database['PASSWORD']}", database["HOST"].replace("/", "%2F")
    return f"postgres://{user}@{host}:{database['PORT']}/{database['NAME']}"


def gateway_env(ollama: FakeOllama, **more: str) -> dict[str, str]:
    return {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "SECRET_KEY": django_settings.SECRET_KEY,
        "DATABASE_URL": database_url(),
        "DATABASE_POOL_SIZE": "8",
        "OLLAMA_BASE": ollama.url,
        "JOURNAL_DIR": django_settings.JOURNAL_DIR,
        **more,
    }


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until a condition is true and return its value; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not true after {seconds} s"
        time.sleep(0.01)
    return result


def usage_row() -> TokenUsage:
    """Wait for the only usage row and return it."""
    eventually(TokenUsage.objects.exists)
    return TokenUsage.objects.get()
