"""An empty list says how to fill it."""

import re

import pytest
from django.test import Client

from tests.harness.backoffice import (
    BUDGETS,
    DAYS,
    ENTRIES,
    HOLDS,
    USAGE,
    text_of,
)


@pytest.mark.parametrize("address", [BUDGETS, ENTRIES, USAGE, HOLDS, DAYS])
def test_every_empty_list_says_how_to_fill_it(admin_client: Client, address: str) -> None:
    page = text_of(admin_client.get(address))

    assert re.search(r'class="nothing">\s*\w+', page)
    assert "There is nothing here yet" not in page
