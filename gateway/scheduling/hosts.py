"""The model servers that requests go to. Today there is one, at OLLAMA_BASE."""

from dataclasses import dataclass
from typing import Any

from gateway.scheduling.inventory import HostInventory, inventory
from gateway.scheduling.loads import Loads
from gateway.scheduling.stuck_models import StuckModels
from gateway.upstream.cancellation import Cancellation
from gateway.upstream.client import LineStream


@dataclass
class Host:
    """One model server: what this process knows of it, and what it does there."""

    inventory: HostInventory
    loads: Loads
    stuck_models: StuckModels

    def ask(self, route: str, body: dict[str, Any], cancellation: Cancellation) -> LineStream:
        """Ask a model, which is loaded first if it is not in memory; raise what
        `OllamaClient.ask` raises, or how the load failed."""
        self.loads.ensure(body["model"], cancellation)
        return self.stuck_models.ask(route, body, cancellation)


_hosts: dict[str, Host] = {}


def host() -> Host:
    """Return the model server of the settings."""
    known = inventory()
    base = known.client.base
    return _hosts.get(base) or _hosts.setdefault(base, _new_host(known))


def _new_host(known: HostInventory) -> Host:
    return Host(known, Loads(known), StuckModels(known.client))
