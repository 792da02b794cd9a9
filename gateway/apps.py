from collections.abc import Callable, Collection
from typing import Any

from django.apps import AppConfig


class GatewayConfig(AppConfig):
    name = "gateway"

    def ready(self) -> None:
        from gateway import checks, metering

        checks.register()
        metering.usable_models = _usable_models
        metering.installed_models = _installed_models


def _usable_models(request: Any) -> Callable[[str], bool]:
    # Imported late: it loads REST framework, which commands do not need.
    from gateway.views.model_access import usable_models

    return usable_models(request)


def _installed_models() -> Collection[str] | None:
    from gateway.templatetags.gateway_models import installed_models

    return installed_models()
