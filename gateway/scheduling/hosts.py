"""The model servers that requests go to. Today there is one: OLLAMA_BASE."""

from dataclasses import dataclass
from typing import Any

from gateway.scheduling import stuck_models
from gateway.scheduling.inventory import HostInventory, inventory
from gateway.scheduling.loads import Loads
from gateway.upstream import client
from gateway.upstream.cancellation import Cancellation


@dataclass
class Host:
    """One model server: what this process knows of it, and the loads it has begun there."""

    inventory: HostInventory
    loads: Loads

    def send(
        self, route: str, body: dict[str, Any], cancellation: Cancellation
    ) -> client.LineStream:
        """Ask a model, which is loaded first if it is not in memory; raise what `client.send`
        raises, or how the load failed."""
        self.loads.ensure(body["model"], cancellation)
        return stuck_models.send(route, body, cancellation)


_hosts: dict[str, Host] = {}


def host() -> Host:
    """Return the model server of the settings."""
    known = inventory()
    return _hosts.get(known.base) or _hosts.setdefault(known.base, Host(known, Loads(known)))
