"""Is it alive, is it ready: without a key, and printing nothing that is nobody's business."""

from typing import Any

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.test.utils import CaptureQueriesContext

from gateway.views import health
from tests.fakes.ollama import FakeOllama


@pytest.mark.django_db
def test_a_gateway_with_database_and_model_server_is_ready(ollama: FakeOllama) -> None:
    answer = Client().get("/readyz")

    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "database": "ok", "upstream": "ok"}


@pytest.mark.django_db
def test_without_its_model_server_it_is_alive_but_not_ready(ollama: FakeOllama) -> None:
    ollama.down()

    assert Client().get("/healthz").json()["status"] == "alive"
    answer = Client().get("/readyz")
    assert answer.status_code == 503
    assert (answer.json()["database"], answer.json()["upstream"]) == ("ok", "unreachable")


@pytest.mark.django_db
def test_without_its_database_it_is_alive_but_not_ready(
    ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("could not connect to host db.internal")

    monkeypatch.setattr(connection, "cursor", fail)

    assert Client().get("/healthz").status_code == 200
    answer = Client().get("/readyz")
    assert (answer.status_code, answer.json()["database"]) == (503, "unreachable")
    assert b"db.internal" not in answer.content


@pytest.mark.django_db
def test_with_the_tables_of_an_older_version_it_is_not_ready(
    ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_was_migrated", False)
    MigrationRecorder(connection).record_unapplied("billing", "0002_append_only")

    answer = Client().get("/readyz")

    assert (answer.status_code, answer.json()["database"]) == (503, "not migrated")


def test_clients_that_look_for_ollama_find_it() -> None:
    assert Client().get("/").content == b"Ollama is running"
    assert Client().head("/").status_code == 200


@pytest.mark.django_db
def test_a_crowd_without_a_key_costs_one_query_and_one_call(
    ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "READY_SECONDS", 60.0)
    Client().get("/readyz")

    with CaptureQueriesContext(connection) as queries:
        answers = [Client().get("/readyz").status_code for _ in range(20)]

    assert answers == [200] * 20 and len(queries) == 0
    assert len(ollama.calls("/api/version")) == 1
