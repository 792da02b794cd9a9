"""Database triggers protect the rows that must never change, whatever code writes.

A later migration may drop a trigger: SQLite rebuilds a table to alter it, and the triggers of the
old table are lost. So `migrate` installs missing triggers at its end.
"""

from collections.abc import Iterator
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

# Each with what tells a row that is written from one that is there, besides its id.
TABLES = {
    "model_prices": "model = NEW.model AND effective_from = NEW.effective_from",
    "token_usages": "request_id = NEW.request_id OR adjusts = NEW.adjusts",
    "billing_entry": "reference = NEW.reference",
    "billing_limitchange": "budget_id = NEW.budget_id AND old IS NULL AND NEW.old IS NULL",
}

_POSTGRESQL = """
CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER {table}_rows BEFORE UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER {table}_whole BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""

_POSTGRESQL_OFF = """
DROP TRIGGER IF EXISTS {table}_rows ON {table};
DROP TRIGGER IF EXISTS {table}_whole ON {table};
"""

_SQLITE = (
    """CREATE TRIGGER {table}_update BEFORE UPDATE ON {table}
    BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END""",
    """CREATE TRIGGER {table}_delete BEFORE DELETE ON {table}
    BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END""",
    # INSERT OR REPLACE deletes the row that is in its way, and fires no trigger for that.
    """CREATE TRIGGER {table}_replace BEFORE INSERT ON {table}
    WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)
        OR EXISTS (SELECT 1 FROM {table} WHERE {same})
    BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END""",
)

_SQLITE_OFF = (
    "DROP TRIGGER IF EXISTS {table}_update",
    "DROP TRIGGER IF EXISTS {table}_delete",
    "DROP TRIGGER IF EXISTS {table}_replace",
)


def protect(editor: BaseDatabaseSchemaEditor) -> None:
    """Refuse UPDATE, DELETE, REPLACE and TRUNCATE on every append-only table."""
    unprotect(editor)
    _run(editor, (_POSTGRESQL,) if _is_postgresql(editor) else _SQLITE)


def unprotect(editor: BaseDatabaseSchemaEditor) -> None:
    """Lift the guard; only migrations and the emptying of a test database do."""
    _run(editor, (_POSTGRESQL_OFF,) if _is_postgresql(editor) else _SQLITE_OFF)


def protect_after_migrate(*, using: str, **_kwargs: Any) -> None:
    """Put the guard back where it is missing; else no table is locked for it."""
    connection = connections[using]
    if missing(connection):
        with connection.schema_editor() as editor:
            protect(editor)


def missing(connection: BaseDatabaseWrapper) -> list[str]:
    """Return the triggers that are not there, not ours or switched off, of the tables there are."""
    tables = set(connection.introspection.table_names())
    found = _found_postgresql if connection.vendor == "postgresql" else _found_sqlite
    with connection.cursor() as cursor:
        there = found(cursor)
    wanted = _WANTED_POSTGRESQL if connection.vendor == "postgresql" else _WANTED_SQLITE
    return [
        name
        for table in TABLES
        if table in tables
        for name in (each.format(table=table) for each in wanted)
        if name not in there
    ]


_WANTED_POSTGRESQL = ("{table}_rows", "{table}_whole")
_WANTED_SQLITE = ("{table}_update", "{table}_delete", "{table}_replace")

# Whether it fires for everybody ("O") or for replicas too ("A"), and what it calls.
_ON_POSTGRESQL = """
SELECT tgname FROM pg_trigger
WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgfoid = to_regproc('refuse_change')
"""


def _found_postgresql(cursor: Any) -> set[str]:
    cursor.execute(_ON_POSTGRESQL)
    return {name for (name,) in cursor.fetchall()}


def _found_sqlite(cursor: Any) -> set[str]:
    """SQLite keeps the text of a trigger, so one of the name that does something else is seen."""
    cursor.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    ours = set(_statements(_SQLITE))
    return {name for name, text in cursor.fetchall() if text in ours}


def _is_postgresql(editor: BaseDatabaseSchemaEditor) -> bool:
    return editor.connection.vendor == "postgresql"


def _run(editor: BaseDatabaseSchemaEditor, statements: tuple[str, ...]) -> None:
    for statement in _statements(statements):
        editor.execute(statement, params=None)


def _statements(templates: tuple[str, ...]) -> Iterator[str]:
    for table, same in TABLES.items():
        for template in templates:
            yield template.format(table=table, same=same)
