"""Rows that must never change are guarded by the database itself, whatever code writes."""

from django.db.backends.base.schema import BaseDatabaseSchemaEditor

TABLES = ("model_prices", "token_usages", "billing_entry")

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
)

_SQLITE_OFF = (
    "DROP TRIGGER IF EXISTS {table}_update",
    "DROP TRIGGER IF EXISTS {table}_delete",
)


def protect(editor: BaseDatabaseSchemaEditor) -> None:
    """Refuse UPDATE, DELETE and TRUNCATE on every append-only table."""
    _run(editor, (_POSTGRESQL,) if _is_postgresql(editor) else _SQLITE)


def unprotect(editor: BaseDatabaseSchemaEditor) -> None:
    """Lift the guard; only migrations and the emptying of a test database do."""
    _run(editor, (_POSTGRESQL_OFF,) if _is_postgresql(editor) else _SQLITE_OFF)


def _is_postgresql(editor: BaseDatabaseSchemaEditor) -> bool:
    return editor.connection.vendor == "postgresql"


def _run(editor: BaseDatabaseSchemaEditor, statements: tuple[str, ...]) -> None:
    for table in TABLES:
        for statement in statements:
            editor.execute(statement.format(table=table), params=None)
