"""Each request writes three rows and every index of their tables, so each index needs a use."""

import pytest
from django.db import connection, models

from billing.models import Hold, TokenUsage, UsageDaily


def indexes(table: str) -> list[list[str]]:
    """Return the columns of each index besides the primary key."""
    with connection.cursor() as cursor:
        constraints = connection.introspection.get_constraints(cursor, table).values()
    return sorted(
        each["columns"]
        for each in constraints
        if (each["index"] or each["unique"]) and not each["primary_key"]
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Hold, [["account_id", "state"], ["lease_until"]]),
        # The index of `adjusts` is partial: an ordinary row does not write to it.
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


def test_each_table_has_an_index_that_starts_with_the_account(db: None) -> None:
    """Before Django deletes an account, it looks for rows of the account in each table."""
    for model in (Hold, TokenUsage, UsageDaily):
        assert any(columns[0] == "account_id" for columns in indexes(model._meta.db_table))
