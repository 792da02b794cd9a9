"""Is the gateway alive, is it ready: for load balancers, without a key, printing no settings."""

import threading
import time
from collections.abc import Callable

from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.request import Request

from gateway.errors import GatewayError, UpstreamStalled
from gateway.scheduling.inventory import inventory
from gateway.scheduling.shared_call import StillRunning
from gateway.upstream.cancellation import track_client
from gateway.views.inference import client_of

OK, UNREACHABLE = "ok", "unreachable"
# One style sheet, and no script, form or frame.
PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# How old may be what is told, and how long the model server is waited for.
READY_SECONDS, UPSTREAM_SECONDS = 1.0, 2.0
_was_migrated = False
# What was found out about the database, and when. Whoever finds it too old asks while the others
# wait, so that a crowd without a key costs one question a second.
_database_said: tuple[float, str] | None = None
_database_lock = threading.Lock()


def _open(view: Callable[[Request], HttpResponse]) -> Callable[..., HttpResponse]:
    """Let everybody read an address; whatever else is tried there is answered as elsewhere."""
    return api_view(["GET", "HEAD"])(authentication_classes([])(permission_classes([])(view)))


@_open
def root(request: Request) -> HttpResponse:
    """Answer as Ollama does, whose clients look here first; show a browser where things are."""
    if "text/html" in request.META.get("HTTP_ACCEPT", ""):
        return _page(request._request)
    response = HttpResponse("Ollama is running", content_type="text/plain; charset=utf-8")
    response["Vary"] = "Accept"
    return response


def _page(request: HttpRequest) -> HttpResponse:
    gateway = f"{request.scheme}://{request.get_host()}"
    response = HttpResponse(render_to_string("gateway/root.html", {"gateway": gateway}, request))
    response["Content-Security-Policy"] = PAGE_POLICY
    response["Vary"] = "Accept"
    return response


@_open
def healthz(request: Request) -> JsonResponse:
    """Say that this process answers."""
    return JsonResponse({"status": "alive"})


@_open
def readyz(request: Request) -> JsonResponse:
    """Say whether the database is migrated and the model server can be reached; 503 if not."""
    found = {"database": _database(), "upstream": _upstream(request)}
    ready = set(found.values()) == {OK}
    status = {"status": "ready" if ready else "not ready", **found}
    return JsonResponse(status, status=200 if ready else 503)


def _database() -> str:
    global _database_said
    with _database_lock:
        now = time.monotonic()
        if _database_said is None or now - _database_said[0] > READY_SECONDS:
            _database_said = (now, _ask_database())
        return _database_said[1]


def _ask_database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return OK if _is_migrated() else "not migrated"
    except Exception:  # Whatever a driver or a pool raises, the answer is the same.
        return UNREACHABLE


def _is_migrated() -> bool:
    """Tell whether the tables are those this code was written for; asked until they are."""
    global _was_migrated
    if not _was_migrated:
        executor = MigrationExecutor(connection)
        _was_migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    return _was_migrated


def _upstream(request: Request) -> str:
    version = inventory().version
    if version.failure(READY_SECONDS) is not None:
        return UNREACHABLE
    cancellation = track_client(client_of(request))
    try:
        version.get(cancellation, READY_SECONDS, UPSTREAM_SECONDS)
    except StillRunning:
        version.note_failure(UpstreamStalled())
        return UNREACHABLE
    except GatewayError:
        return UNREACHABLE
    finally:
        cancellation.detach()
    return OK
