"""A database connection is lent for a few statements, and never kept while others are waited for:
a client that sends or reads slowly, the model server, a thread's next request.

The pool is small and serves everybody. Who has used a connection gives it back; Django alone would
do so only when the answer has been sent.
"""

from collections.abc import Callable

from django.db import connection
from django.http import HttpRequest, HttpResponseBase

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def release_connection() -> None:
    """Give this thread's connection back to its pool, unless a transaction needs it.

    One to SQLite, which has no pool, is kept: to open it anew costs more than a transaction.
    """
    if connection.vendor != "sqlite" and not connection.in_atomic_block:
        connection.close()


def release_after_view(get_response: GetResponse) -> GetResponse:
    """Middleware: what remains of a request is to write its answer, as fast as the client reads."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        try:
            return get_response(request)
        finally:
            release_connection()

    return middleware
