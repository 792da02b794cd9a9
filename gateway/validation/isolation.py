"""Keep what one account asks from what another can find out. Pure.

A model server caches the prompts that it has read, and responds to a cached beginning in a
hundredth of the time. So a customer could find out piece by piece what others asked: a right guess
is fast. Here each account's prompts begin with a salt of their own. Accounts share no beginning,
and each keeps the speed of its own repeated prompts.

The salt is a full stop and thirteen blanks, tabs and line breaks. The full stop keeps it where a
template trims a message. Measured on SmolLM2, 13 prompts: it adds 6 to 9 tokens and leaves half of
an answer as it was; letters and digits in place of the blanks change more of it.

A salt is no secret. It is of fixed length, so what a client writes after its own never makes it
another's.
"""

import hmac
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from gateway.metering import Operation

FIRST, BLANKS, LENGTH = ".", " \t\n", 13  # 3^13 salts are 20.6 bits.


@lru_cache(maxsize=4096)
def salt_of(account_id: int, secret: str) -> str:
    """Return an account's salt. With another secret it is another, which costs one slow prompt."""
    said = f"gateway.validation.isolation {account_id}".encode()
    number = int.from_bytes(hmac.digest(secret.encode(), said, "sha256"))
    digits = (number // len(BLANKS) ** place % len(BLANKS) for place in range(LENGTH))
    return FIRST + "".join(BLANKS[digit] for digit in digits)


def isolate(body: dict[str, Any], operation: Operation, salt: str) -> int:
    """Put a salt in front of what a template may write first; return how many bytes it added.

    Templates differ: most begin with the system message, some put it before the last message
    (Mistral's) and begin with the oldest, some begin with the tools (Qwen's). So each of the three
    is salted. An operator's own text belongs in front of all that: add it after this.
    """
    if operation is Operation.CHAT:
        return sum(_put(salt, *place) for place in _places(body))
    if operation is Operation.GENERATE and _has_text(body, "prompt"):
        return sum(_put(salt, body, name) for name in ("system", "prompt") if _has_text(body, name))
    return 0


def _places(body: dict[str, Any]) -> Iterable[tuple[dict[str, Any], str]]:
    """Yield the first system message, the first other message and the first tool.

    A message without text is passed over: trimmed, a salt alone would be every account's.
    """
    told = [message for message in body.get("messages", []) if _has_text(message, "content")]
    system = [message for message in told if message.get("role") == "system"]
    others = [message for message in told if message.get("role") != "system"]
    for message in (*system[:1], *others[:1]):
        yield message, "content"
    functions = [tool["function"] for tool in body.get("tools", [])[:1] if "function" in tool]
    for function in functions:
        yield function, "description"


def _has_text(fields: dict[str, Any], name: str) -> bool:
    return bool(fields.get(name, "").strip())


def _put(salt: str, fields: dict[str, Any], name: str) -> int:
    fields[name] = salt + fields.get(name, "")
    # A tool is written as JSON, where a tab or a line break takes two bytes.
    return 2 * len(salt)
