"""Read model instances by raw SQL, on a request's way: there the ORM needs several times as long to
compile a query as the database needs to run it.

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
    """Some columns of a model. An instance made of them loads any other when it is used."""

    def __init__(self, model: type[Row], alias: str, fields: str) -> None:
        wanted = fields.split()
        # In the order of the table's definition, as `from_db` takes them.
        found = [field for field in model._meta.concrete_fields if field.name in wanted]
        if len(found) != len(wanted):
            raise ValueError(f"{model.__name__} does not have all of: {fields}")
        self._model = model
        self._attributes = [field.attname for field in found]
        self._converters = [_CONVERTERS.get(type(field), _unchanged) for field in found]
        self.table = f'"{model._meta.db_table}" AS {alias}'
        self.names = ", ".join(f'{alias}."{field.column}"' for field in found)

    def __len__(self) -> int:
        return len(self._attributes)

    def instance(self, row: Sequence[Any]) -> Row:
        pairs = zip(self._converters, row, strict=True)
        values = [convert(value) for convert, value in pairs]
        return self._model.from_db("default", self._attributes, values)


# --- What a driver returns, as the ORM would ------------------------------------------------------


def moment(value: Any) -> datetime | None:
    """SQLite's are naive, or text where they come from an expression; both are UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value  # type: ignore[no-any-return]


def uuid(value: Any) -> UUID | None:
    """SQLite keeps 32 digits."""
    return UUID(value) if isinstance(value, str) else value


def parsed(value: Any) -> Any:
    """Both databases return JSON as text."""
    return json.loads(value) if isinstance(value, str) else value


def _unchanged(value: Any) -> Any:
    return value


_CONVERTERS: dict[type, Callable[[Any], Any]] = {
    models.DateTimeField: moment,
    models.UUIDField: uuid,
    models.JSONField: parsed,
}
