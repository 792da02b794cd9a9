"""Rows that must never change are guarded by the database itself, whatever code writes."""

from django.db.backends.base.schema import BaseDatabaseSchemaEditor

# Each with what tells a row that is written from one that is there, besides its id.
TABLES = {
    "model_prices": "model = NEW.model AND effective_from = NEW.effective_from",
    "token_usages": "request_id = NEW.request_id",
    "billing_entry": "FALSE",
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
    _run(editor, (_POSTGRESQL,) if _is_postgresql(editor) else _SQLITE)


def unprotect(editor: BaseDatabaseSchemaEditor) -> None:
    """Lift the guard; only migrations and the emptying of a test database do."""
    _run(editor, (_POSTGRESQL_OFF,) if _is_postgresql(editor) else _SQLITE_OFF)


def _is_postgresql(editor: BaseDatabaseSchemaEditor) -> bool:
    return editor.connection.vendor == "postgresql"


def _run(editor: BaseDatabaseSchemaEditor, statements: tuple[str, ...]) -> None:
    for table, same in TABLES.items():
        for statement in statements:
            editor.execute(statement.format(table=table, same=same), params=None)
