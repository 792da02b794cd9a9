"""Is the gateway alive, is it ready: for load balancers, without a key, printing no settings."""

from collections.abc import Callable

from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.request import Request

from gateway import upstream
from gateway.errors import GatewayError

OK, UNREACHABLE = "ok", "unreachable"
# One style sheet, and no script, form or frame.
PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_was_migrated = False


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
    found = {"database": _database(), "upstream": _upstream()}
    ready = set(found.values()) == {OK}
    status = {"status": "ready" if ready else "not ready", **found}
    return JsonResponse(status, status=200 if ready else 503)


def _database() -> str:
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


def _upstream() -> str:
    try:
        upstream.fetch("version", seconds=2.0)
    except GatewayError:
        return UNREACHABLE
    return OK
