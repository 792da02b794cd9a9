"""Health probes for load balancers: without a key, and without showing any setting."""

import threading
import time
from collections.abc import Callable

from django.conf import settings
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpResponse, JsonResponse
from django.template.loader import render_to_string
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.request import Request

from gateway.errors import GatewayError, UpstreamStalled
from gateway.http.context import context_of
from gateway.scheduling.inventory import inventory
from gateway.scheduling.shared_call import StillRunning
from gateway.upstream.cancellation import track_client

OK, UNREACHABLE = "ok", "unreachable"
# One style sheet, and no script, form or frame.
PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# How old a shown result may be, and how long the model server is waited for.
READY_SECONDS, UPSTREAM_SECONDS = 1.0, 2.0
_was_migrated = False
# The time and the result of the last database check. One request checks while the others wait for
# the lock: probes need no key, and any number of them costs one query a second.
_database_status: tuple[float, str] | None = None
_database_lock = threading.Lock()


def _open(view: Callable[[Request], HttpResponse]) -> Callable[..., HttpResponse]:
    """Let everybody GET a route; other methods are answered as on every route."""
    return api_view(["GET", "HEAD"])(authentication_classes([])(permission_classes([])(view)))


@_open
def root(request: Request) -> HttpResponse:
    """Answer as Ollama does, because its clients ask here first. A browser gets a page."""
    if "text/html" in request.META.get("HTTP_ACCEPT", ""):
        return _page(request)
    response = HttpResponse("Ollama is running", content_type="text/plain; charset=utf-8")
    response["Vary"] = "Accept"
    return response


def _page(request: Request) -> HttpResponse:
    gateway = f"{request.scheme}://{request.get_host()}"
    response = HttpResponse(render_to_string("gateway/root.html", {"gateway": gateway}))
    response["Content-Security-Policy"] = PAGE_POLICY
    response["Vary"] = "Accept"
    return response


@_open
def healthz(request: Request) -> JsonResponse:
    """Return that this process works, and its version. gateway/wire.py returns the same."""
    return JsonResponse({"status": "alive", "version": settings.VERSION})


@_open
def readyz(request: Request) -> JsonResponse:
    """Tell whether the database is migrated and the model server reachable; 503 if not."""
    checks = {"database": _database(), "upstream": _upstream(request)}
    ready = set(checks.values()) == {OK}
    status = {"status": "ready" if ready else "not ready", **checks}
    return JsonResponse(status, status=200 if ready else 503)


def _database() -> str:
    global _database_status
    with _database_lock:
        now = time.monotonic()
        if _database_status is None or now - _database_status[0] > READY_SECONDS:
            _database_status = (now, _check_database())
        return _database_status[1]


def _check_database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return OK if _is_migrated() else "not migrated"
    except Exception:  # Drivers and pools raise many classes; all mean the same here.
        return UNREACHABLE


def _is_migrated() -> bool:
    """Tell whether all migrations are applied; once they are, do not check again."""
    global _was_migrated
    if not _was_migrated:
        executor = MigrationExecutor(connection)
        _was_migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    return _was_migrated


def _upstream(request: Request) -> str:
    version = inventory().version
    if version.failure(READY_SECONDS) is not None:
        return UNREACHABLE
    with track_client(context_of(request).client) as cancellation:
        try:
            version.get(cancellation, READY_SECONDS, UPSTREAM_SECONDS)
        except StillRunning:
            version.note_failure(UpstreamStalled())
            return UNREACHABLE
        except GatewayError:
            return UNREACHABLE
    return OK
