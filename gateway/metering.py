"""The port between the gateway and billing: the types that both use, and the meter.

The gateway opens a meter before it asks the model server, and closes it exactly once when the
response has ended, however it ended. It knows nothing else of billing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from gateway.errors import GatewayError


class Operation(StrEnum):
    """What the model server is asked to do: a key of `upstream.client.ROUTES`."""

    GENERATE = "generate"
    CHAT = "chat"
    EMBED = "embed"


class Outcome(StrEnum):
    """How an answer ended."""

    COMPLETE = "complete"
    CLIENT_LEFT = "client_left"
    ANSWER_TOO_LONG = "answer_too_long"
    KEY_REVOKED = "key_revoked"
    # The model server says that the request is at fault, before the first chunk or after it.
    INVALID_REQUEST = "invalid_request"
    UPSTREAM_REFUSED = "upstream_refused"
    UPSTREAM_BROKE = "upstream_broke"
    UPSTREAM_STALLED = "upstream_stalled"
    GATEWAY_FAILED = "gateway_failed"
    GATEWAY_STOPPED = "gateway_stopped"
    EXPIRED = "expired"


class CountSource(StrEnum):
    """Who counted the tokens: the model server, we while relaying, or a formula."""

    UPSTREAM = "upstream"
    COUNTED = "counted"
    ESTIMATED = "estimated"


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A request's `Idempotency-Key`. Two requests with the same `digest` bear the same key; with
    the same `fingerprint` they also ask for the same thing."""

    digest: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked, before it is answered.

    `prompt_bound` and `completion_bound` are the most tokens the answer can read and write;
    `prompt_estimate` is what a prompt of this length usually costs, for when nobody counted.
    """

    account_id: int
    key_id: int
    operation: Operation
    model: str
    prompt_bound: int
    prompt_estimate: int
    completion_bound: int
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What was counted, in tokens. `started`: the model server had begun to answer. `delivered`:
    what was counted was on its way to the client, chunk by chunk, when the response ended early."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    source: CountSource = CountSource.COUNTED
    started: bool = False
    delivered: bool = False

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an answer cost, exactly, in the currency's major unit."""

    usage: Usage
    cost: Decimal
    currency: str

    @property
    def cost_text(self) -> str:
        """The cost as a decimal number without an exponent."""
        return f"{self.cost:f}"


@dataclass(frozen=True, slots=True)
class Offer:
    """A model's effective price, per 1,000 tokens."""

    prompt: Decimal
    completion: Decimal
    currency: str


class Refused(GatewayError):
    """The meter does not admit the demand."""


class NoCredit(Refused):
    """The account's credit does not cover the most the answer can cost."""

    status, code = 402, "insufficient_credit"


class CapReached(Refused):
    """A monthly cap does not cover the most the answer can take."""

    status, code = 429, "cap_reached"


class NotPriced(Refused):
    """The model has no effective price, so it is not for sale.

    Whether it is installed is not told: a customer cannot use it either way.
    """

    status, code = 404, "model_not_priced"

    def __init__(self, model: str, alike: str | None = None) -> None:
        hint = f"Did you mean '{alike}'?" if alike else "GET /models lists what this key may use."
        super().__init__(f"There is no model '{model}' for this key. {hint}")


class IdempotencyKeyInUse(Refused):
    """The first request with this Idempotency-Key still runs."""

    status, code, never_retry = 409, "idempotency_key_in_use", True


class IdempotencyKeyUsed(Refused):
    """A request with this Idempotency-Key ended and was charged. Its response is not stored."""

    status, code, never_retry = 409, "idempotency_key_used", True


class IdempotencyKeyMismatch(Refused):
    """Another request had this Idempotency-Key."""

    status, code, never_retry = 422, "idempotency_key_mismatch", True


class Meter(Protocol):
    """Counts one request. Opened at most once; if opened, closed or discarded exactly once."""

    def offers(self, models: Collection[str]) -> Mapping[str, Offer]:
        """Return the effective price of each model that has one, by canonical name."""

    def require_credit(self, account_id: int) -> None:
        """Raise Refused for an account that can pay for nothing; asked before much is read."""

    def open(self, demand: Demand) -> None:
        """Admit the demand and hold the most that it can cost; raise Refused."""

    def progress(self, completion_tokens: int) -> None:
        """Record the tokens produced so far, for the settlement after a crash."""

    def close(self, usage: Usage, outcome: Outcome) -> Receipt | None:
        """Settle once, never raise; return None if the bill could not be written now."""

    def discard(self, outcome: Outcome) -> None:
        """Undo the opening of a request that never reached the model server; never raise.

        `outcome`: how the request ended, for where it cannot be undone now.
        """


class NullMeter:
    """Counts nothing: for what costs nothing."""

    def offers(self, models: Collection[str]) -> Mapping[str, Offer]:
        return {}

    def require_credit(self, account_id: int) -> None:
        pass

    def open(self, demand: Demand) -> None:
        pass

    def progress(self, completion_tokens: int) -> None:
        pass

    def close(self, usage: Usage, outcome: Outcome) -> Receipt | None:
        return None

    def discard(self, outcome: Outcome) -> None:
        pass


class Books(Protocol):
    """What commands of the gateway read from billing; settings.BOOKS names the class."""

    def priced(self) -> Collection[str]:
        """Return the canonical names of all models with an effective price."""

    def recently_used(self, models: Collection[str]) -> Collection[str]:
        """Return those of the models that were requested today or yesterday."""
