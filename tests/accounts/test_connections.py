"""Code returns its database connection to the pool; `tests/faults/test_pool.py` shows why."""

from collections.abc import Callable

import pytest
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from accounts.connections import release_after_view, release_connection
from accounts.models import ApiKey

pytestmark = pytest.mark.django_db(transaction=True)


def responds(_request: HttpRequest) -> HttpResponse:
    connection.ensure_connection()
    return HttpResponse()


def fails(_request: HttpRequest) -> HttpResponse:
    connection.ensure_connection()
    raise ValueError


@pytest.mark.parametrize("view", [responds, fails])
def test_a_response_is_written_without_a_database_connection(
    rf: RequestFactory, view: Callable[[HttpRequest], HttpResponse]
) -> None:
    try:
        release_after_view(view)(rf.get("/"))
    except ValueError:
        assert view is fails

    assert (connection.connection is not None) == (connection.vendor == "sqlite")


def test_a_transaction_keeps_its_connection() -> None:
    with transaction.atomic():
        ApiKey.objects.exists()
        release_connection()

        assert not ApiKey.objects.exists()
