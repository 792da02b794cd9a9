"""The triggers of append-only tables survive migrations, and missing ones are reported."""

from collections.abc import Iterator

import pytest
from django.apps import apps
from django.core.management.sql import emit_post_migrate_signal
from django.db import connection, models
from django.db.migrations.loader import MigrationLoader

from billing import append_only, checks
from tests.billing.test_configuration import manage
from tests.harness.gateway import database_url

# For each table, a column that a later migration could widen.
WIDENED = {
    "model_prices": ("ModelPrice", "model"),
    "token_usages": ("TokenUsage", "operation"),
    "billing_entry": ("Entry", "reason"),
    "billing_limitchange": ("LimitChange", "author"),
}
FIRST = {"sqlite": "token_usages_update", "postgresql": "token_usages_rows"}


def missing() -> list[str]:
    return append_only.missing(connection)


@pytest.fixture
def unguarded(transactional_db: None) -> Iterator[str]:
    """Remove a trigger and return its name."""
    name = FIRST[connection.vendor]
    on = " ON token_usages" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TRIGGER {name}{on}")
    yield name
    append_only.protect_after_migrate(using="default")


def widen(model: type[models.Model], name: str, by: int) -> None:
    """Alter a field as a migration does."""
    old = model._meta.get_field(name)
    assert isinstance(old, models.CharField) and old.max_length
    new = old.clone()
    new.max_length = old.max_length + by
    new.set_attributes_from_name(name)
    new.model = model
    with connection.schema_editor() as editor:
        editor.alter_field(model, old, new)


def test_migrations_create_every_trigger(db: None) -> None:
    applied = MigrationLoader(connection).applied_migrations

    assert ("billing", "0002_append_only") in applied
    assert set(WIDENED) == set(append_only.TABLES)
    assert missing() == []


@pytest.mark.parametrize("table", append_only.TABLES)
def test_migrate_restores_the_triggers_of_an_altered_table(
    transactional_db: None, table: str
) -> None:
    name, field = WIDENED[table]
    model = apps.get_model("billing", name)
    assert model._meta.db_table == table

    widen(model, field, by=1)
    lost = missing()
    emit_post_migrate_signal(verbosity=0, interactive=False, db="default")

    assert missing() == []
    if connection.vendor == "sqlite":
        assert lost == [f"{table}_update", f"{table}_delete", f"{table}_replace"]
    else:
        widen(model, field, by=0)


def test_triggers_can_be_created_twice(transactional_db: None) -> None:
    for _ in range(2):
        with connection.schema_editor() as editor:
            append_only.protect(editor)

    assert missing() == []


def test_the_check_names_a_missing_trigger_and_the_repair(unguarded: str) -> None:
    (error,) = checks.check_guards()

    assert error.id == "billing.E005" and unguarded in error.msg
    assert error.hint and "manage.py migrate" in error.hint


def test_a_disabled_or_replaced_trigger_counts_as_missing(unguarded: str) -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("ALTER TABLE billing_entry DISABLE TRIGGER billing_entry_rows")
            disabled = "billing_entry_rows"
        else:
            cursor.execute(
                f"CREATE TRIGGER {unguarded} BEFORE UPDATE ON token_usages BEGIN SELECT 1; END"
            )
            disabled = unguarded

    assert disabled in missing()


def test_the_server_does_not_start_without_a_trigger_until_migrate_restores_it(
    unguarded: str,
) -> None:
    env = {"DATABASE_URL": database_url()}

    rejected = manage("check", "--deploy", **env)
    repaired = manage("migrate", "--no-input", **env)
    started = manage("check", "--deploy", **env)

    assert rejected.returncode != 0 and "billing.E005" in rejected.stderr
    assert repaired.returncode == 0, repaired.stderr
    assert started.returncode == 0, started.stderr


def test_a_database_without_tables_misses_no_trigger(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection.introspection, "table_names", list)

    assert missing() == [] and checks.check_guards() == []
