"""Who has used a database connection gives it back; `tests/faults/test_pool.py` shows why."""

from collections.abc import Callable

import pytest
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from accounts.connections import release_after_view, release_connection
from accounts.models import ApiKey

pytestmark = pytest.mark.django_db(transaction=True)


def answers(_request: HttpRequest) -> HttpResponse:
    connection.ensure_connection()
    return HttpResponse()


def fails(_request: HttpRequest) -> HttpResponse:
    connection.ensure_connection()
    raise ValueError


@pytest.mark.parametrize("view", [answers, fails])
def test_an_answer_is_written_without_one(
    rf: RequestFactory, view: Callable[[HttpRequest], HttpResponse]
) -> None:
    try:
        release_after_view(view)(rf.get("/"))
    except ValueError:
        assert view is fails

    assert (connection.connection is not None) == (connection.vendor == "sqlite")


def test_a_transaction_keeps_its_own() -> None:
    with transaction.atomic():
        ApiKey.objects.exists()
        release_connection()

        assert not ApiKey.objects.exists()
