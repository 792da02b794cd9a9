"""The WSGI application that gunicorn serves."""

import os
from collections.abc import Callable, Iterable
from typing import Any

from django.core.wsgi import get_wsgi_application

from config import background
from gateway.http.media_types import sanitize_content_type

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

# The application without the periodic work of its process.
django_application = sanitize_content_type(get_wsgi_application())


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    background.start_with_first_request()
    return django_application(environ, start_response)


def limit_db_wait() -> None:
    """Limit how long a request waits for the database. Management commands may wait longer."""
    from django.conf import settings
    from django.db import connection

    if connection.vendor == "postgresql":
        from config.postgresql.base import PatientConnection, try_anew_at_once

        PatientConnection.seconds = settings.DATABASE_ANSWER_SECONDS
        try_anew_at_once()


def load_routes() -> None:
    """Import every view now. A worker without free file descriptors could not import later."""
    from django.urls import get_resolver

    get_resolver().url_patterns  # noqa: B018  # Read once, kept.


limit_db_wait()
load_routes()
