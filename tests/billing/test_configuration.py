"""The currency and scale of a database cannot change after its first migration."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.db import connection

from billing import checks, configuration
from billing.models import BillingConfig
from tests.harness.gateway import database_url

ROOT = Path(__file__).resolve().parents[2]
SQLITE = {"DATABASE_URL": "sqlite:////nonexistent/gateway.sqlite3"}
POSTGRESQL = {"DATABASE_URL": "postgres://gateway@127.0.0.1:9/gateway"}


def ids() -> list[str | None]:
    return [message.id for message in checks.check_configuration()]


def manage(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *command],
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_first_migration_writes_the_configuration(db: None) -> None:
    row = BillingConfig.objects.get()

    assert (row.currency, row.scale) == ("USD", 12)
    assert isinstance(row.database_id, UUID)
    assert configuration.database_id() == row.database_id


def test_a_later_migration_does_not_change_the_configuration(db: None, settings: Any) -> None:
    before = BillingConfig.objects.get()
    settings.CURRENCY = "EUR"

    configuration.write_after_migrate(using="default")

    after = BillingConfig.objects.get()
    assert (after.currency, after.database_id) == (before.currency, before.database_id)


def test_another_currency_is_rejected(db: None, settings: Any) -> None:
    settings.CURRENCY = "EUR"

    (error,) = checks.check_configuration()

    assert error.id == "billing.E004"
    assert error.msg == "CURRENCY is EUR, but the amounts of this database are USD."


def test_another_scale_is_rejected(db: None) -> None:
    BillingConfig.objects.update(scale=9)

    assert ids() == ["billing.E004"]


def test_a_second_configuration_row_is_rejected(db: None) -> None:
    with pytest.raises(Exception, match="one_billing_config"):
        BillingConfig.objects.create(id=2, currency="EUR", scale=12)


def test_a_database_that_is_not_migrated_passes_the_check(transactional_db: None) -> None:
    with connection.schema_editor() as editor:
        editor.execute("ALTER TABLE billing_billingconfig RENAME TO away")
    try:
        assert ids() == []
    finally:
        with connection.schema_editor() as editor:
            editor.execute("ALTER TABLE away RENAME TO billing_billingconfig")


def test_a_command_with_another_currency_fails_without_a_traceback(transactional_db: None) -> None:
    finished = manage("create_account", "Alice Ltd", CURRENCY="EUR", DATABASE_URL=database_url())

    assert finished.returncode != 0 and "billing.E004" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.once
@pytest.mark.parametrize("env", [SQLITE, POSTGRESQL], ids=["no file", "no server"])
def test_check_passes_when_the_database_is_unreachable(env: dict[str, str]) -> None:
    finished = manage("check", **env)

    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.once
def test_check_creates_no_database_file(tmp_path: Path) -> None:
    finished = manage("check", DATABASE_URL=f"sqlite:///{tmp_path}/new.sqlite3")

    assert finished.returncode == 0 and list(tmp_path.iterdir()) == []
