"""Periodic work survives errors, keeps no database connection, and starts once per process."""

import logging
import threading
from unittest.mock import Mock

import pytest
from django.db import InterfaceError, OperationalError

from accounts.connections import released_connection
from billing import leases
from config import background
from config.background import Periodic

ERRORS = {
    "database": (OperationalError("away"), "The database failed in work: OperationalError"),
    "driver": (InterfaceError("closed"), "The database failed in work: InterfaceError"),
    "bug": (ValueError("bug"), "An error in work; it runs again in 5 s"),
}


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Stand in for the database connection."""
    connection = Mock(vendor="postgresql", in_atomic_block=False)
    monkeypatch.setattr("config.background.connection", connection)
    monkeypatch.setattr("accounts.connections.connection", connection)
    return connection


@pytest.mark.parametrize(("error", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_logged_and_the_work_runs_again(
    connection: Mock, caplog: pytest.LogCaptureFixture, error: Exception, message: str
) -> None:
    work = Mock(side_effect=[error, None])
    task = Periodic("work", 5, work)

    with caplog.at_level(logging.WARNING):
        task.run_once()
        task.run_once()

    assert work.call_count == 2 and caplog.messages == [message]


def test_the_work_runs_at_once_and_again_in_a_thread_of_its_name(connection: Mock) -> None:
    names: list[str] = []
    twice = threading.Event()

    def work() -> None:
        names.append(threading.current_thread().name)
        if len(names) == 2:
            twice.set()
            threading.Event().wait()  # This thread ends with the tests.

    Periodic("work", 0.01, work).start()

    assert twice.wait(30) and names == ["work", "work"]


def test_the_connection_is_released_whether_the_work_succeeds_or_fails(connection: Mock) -> None:
    with released_connection():
        connection.close.assert_not_called()
    with pytest.raises(ValueError, match="bug"), released_connection():
        raise ValueError("bug")

    assert connection.close.call_count == 2


def test_each_run_releases_its_connection(connection: Mock) -> None:
    Periodic("work", 5, Mock()).run_once()

    assert connection.close.call_count == 1


def test_a_database_error_closes_the_connection_of_sqlite_too(connection: Mock) -> None:
    connection.vendor = "sqlite"
    task = Periodic("work", 5, Mock(side_effect=[None, OperationalError("away")]))

    task.run_once()
    connection.close.assert_not_called()
    task.run_once()

    assert connection.close.call_count == 1


# --- Start ---


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Record which tasks start; no thread does."""
    start = Mock()
    monkeypatch.setattr(Periodic, "start", lambda task: start(task.name))
    monkeypatch.setattr(background, "_started_in", None)
    return start


def names(started: Mock) -> list[str]:
    return [call.args[0] for call in started.call_args_list]


def test_a_process_starts_every_task_once(started: Mock) -> None:
    assert background.start() and not background.start()
    assert names(started) == ["leases", "revocation"]


def test_the_first_request_starts_the_tasks_unless_gunicorn_did(
    started: Mock, caplog: pytest.LogCaptureFixture
) -> None:
    background.start_with_first_request()
    background.start_with_first_request()

    assert names(started) == ["leases", "revocation"]
    [message] = caplog.messages
    assert message.startswith("Served without -c config/gunicorn.py")


def test_a_forked_process_starts_its_own_tasks(
    started: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    background.start()
    monkeypatch.setattr("os.getpid", lambda: -1)

    assert background.start()


# --- Leases ---


def test_after_a_database_error_expired_leases_are_not_settled(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes could not renew their leases either."""
    settle = Mock()
    monkeypatch.setattr("billing.recovery.settle_abandoned", settle)
    renewer = leases.LeaseRenewer()
    with monkeypatch.context() as patch:
        patch.setattr("billing.ledger.renew", Mock(side_effect=OperationalError("away")))
        with pytest.raises(OperationalError):
            renewer.tick()

    renewer.tick()

    settle.assert_called_once_with(expired=False, served=set())
