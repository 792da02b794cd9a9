"""Is the gateway alive, is it ready: for load balancers, without a key, printing no settings."""

from collections.abc import Callable

from django.db import connection
from django.http import HttpResponse, JsonResponse
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.request import Request

from gateway import upstream
from gateway.errors import GatewayError


def _open(view: Callable[[Request], HttpResponse]) -> Callable[..., HttpResponse]:
    """Let everybody read an address; whatever else is tried there is answered as elsewhere."""
    return api_view(["GET", "HEAD"])(authentication_classes([])(permission_classes([])(view)))


@_open
def root(request: Request) -> HttpResponse:
    """Answer as Ollama does; its clients look here first."""
    return HttpResponse("Ollama is running", content_type="text/plain; charset=utf-8")


@_open
def healthz(request: Request) -> JsonResponse:
    """Say that this process answers."""
    return JsonResponse({"status": "alive"})


@_open
def readyz(request: Request) -> JsonResponse:
    """Say whether the database and the model server can be reached; 503 if not."""
    checks = {"database": _database_answers(), "upstream": _upstream_answers()}
    ready = all(checks.values())
    shown = {name: "ok" if fine else "unreachable" for name, fine in checks.items()}
    status = {"status": "ready" if ready else "not ready", **shown}
    return JsonResponse(status, status=200 if ready else 503)


def _database_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Exception:  # Whatever a driver or a pool raises, the answer is the same.
        return False
    return True


def _upstream_answers() -> bool:
    try:
        upstream.fetch("version", seconds=2.0)
    except GatewayError:
        return False
    return True
