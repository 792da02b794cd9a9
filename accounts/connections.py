"""Code returns its database connection to the pool before it waits for a client, the model server
or the next request of its thread.

The pool is small. Django by itself would return a connection only after the response is sent, which
may take an hour.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import connection
from django.http import HttpRequest, HttpResponseBase

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def release_connection() -> None:
    """Return this thread's connection to the pool, unless a transaction is open.

    SQLite has no pool. Its connection stays open, since opening one costs more than a transaction.
    """
    if connection.vendor != "sqlite" and not connection.in_atomic_block:
        connection.close()


@contextmanager
def released_connection() -> Iterator[None]:
    """Return the connection to the pool after a unit of work, whether it succeeds or fails."""
    try:
        yield
    finally:
        release_connection()


def release_after_view(get_response: GetResponse) -> GetResponse:
    """Middleware: after the view only the response is sent, as fast as the client reads."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        with released_connection():
            return get_response(request)

    return middleware
