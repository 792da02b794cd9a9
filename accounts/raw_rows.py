"""Read model instances by raw SQL, for the queries of every request: the ORM takes several times as
long to compile such a query as the database takes to run it.

Column names come from `_meta`, and values are converted as the ORM converts them.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from django.db import models

Row = TypeVar("Row", bound=models.Model)


class Columns(Generic[Row]):
    """Some columns of a model. Its instances load any other column on access."""

    def __init__(self, model: type[Row], alias: str, fields: str) -> None:
        wanted = fields.split()
        # In the order of the table's definition, as `from_db` takes them.
        columns = [field for field in model._meta.concrete_fields if field.name in wanted]
        if len(columns) != len(wanted):
            raise ValueError(f"{model.__name__} does not have all of: {fields}")
        self._model = model
        self._attributes = [field.attname for field in columns]
        self._converters = [_CONVERTERS.get(type(field), _unchanged) for field in columns]
        self.table = f'"{model._meta.db_table}" AS {alias}'
        self.names = ", ".join(f'{alias}."{field.column}"' for field in columns)

    def __len__(self) -> int:
        return len(self._attributes)

    def instance(self, row: Sequence[Any]) -> Row:
        pairs = zip(self._converters, row, strict=True)
        values = [convert(value) for convert, value in pairs]
        return self._model.from_db("default", self._attributes, values)


# --- Converting what a driver returns -------------------------------------------------------------


def moment(value: Any) -> datetime | None:
    """Return a UTC time. SQLite returns a naive time, or text for an expression."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value  # type: ignore[no-any-return]


def uuid(value: Any) -> UUID | None:
    """Return a UUID. SQLite returns 32 digits."""
    return UUID(value) if isinstance(value, str) else value


def parsed(value: Any) -> Any:
    """Parse JSON. Both databases return it as text."""
    return json.loads(value) if isinstance(value, str) else value


def _unchanged(value: Any) -> Any:
    return value


_CONVERTERS: dict[type, Callable[[Any], Any]] = {
    models.DateTimeField: moment,
    models.UUIDField: uuid,
    models.JSONField: parsed,
}
