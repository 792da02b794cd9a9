"""Every request writes three rows, and every index of their tables: none without a use."""

import pytest
from django.db import connection, models

from billing.models import Hold, TokenUsage, UsageDaily


def indexes(table: str) -> list[list[str]]:
    """Return the columns of each index besides the primary key."""
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, table).values()
    kept = [each for each in found if (each["index"] or each["unique"]) and not each["primary_key"]]
    return sorted(each["columns"] for each in kept)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Hold, [["account_id", "state"], ["lease_until"]]),
        # `adjusts` is partial: an ordinary row writes nothing to it.
        (
            TokenUsage,
            [["account_id", "id"], ["adjusts"], ["day"], ["key_id", "id"], ["request_id"]],
        ),
        (
            UsageDaily,
            [["account_id", "day", "key_id", "model", "price_id"], ["account_id", "id"], ["day"]],
        ),
    ],
)
def test_a_request_writes_these_indexes(
    db: None, model: type[models.Model], expected: list[list[str]]
) -> None:
    assert indexes(model._meta.db_table) == expected


def test_an_account_is_found_in_each_table_by_an_index(db: None) -> None:
    """Before an account is deleted, Django asks each of them whether it has rows."""
    for model in (Hold, TokenUsage, UsageDaily):
        assert any(columns[0] == "account_id" for columns in indexes(model._meta.db_table))
