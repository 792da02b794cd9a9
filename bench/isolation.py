"""P25: whether an account can find out from response times what another account sent.

The embedded model server with its real model, behind a real gateway: the fake one has no prompt
cache. It keeps the last prompt of each of its slots. A real Ollama keeps more, for longer.
"""

import random
import statistics
from collections.abc import Callable

import requests

from bench.figures import Figure, Figures
from tests.harness.deployment import Deployment, deploy, issue_key
from tests.servers.embedded import EmbeddedModelServer
from tests.servers.gunicorn import Gunicorn, manage

MODEL = "smollm2:135m"
WORDS = "river stone window paper garden letter silver morning engine harbour candle".split()  # noqa: SIM905
ROUNDS, CONTROL_ROUNDS = 9, 3
# Words, of about two tokens each with their number.
LENGTH = 165
LOW, HIGH, FAST = 0.8, 1.25, 0.2

Ask = Callable[[str, str], float]


def isolation() -> Figures:
    with (
        EmbeddedModelServer(parallel=4) as engine,
        deploy("sqlite", OLLAMA_BASE=engine.url, ISOLATE_PROMPTS="on") as deployment,
        deployment.gateway() as server,
    ):
        manage(deployment.env, "set_price", MODEL, "--input", "0.001")
        ask, dice = asking(server), random.Random(25)
        isolated, open_to_all = pair(deployment, "on"), pair(deployment, "off")
        apart = [one_round(ask, dice, *isolated) for _ in range(ROUNDS)]
        shared = [one_round(ask, dice, *open_to_all) for _ in range(CONTROL_ROUNDS)]
    return [
        ratio("another's text costs as much as an unknown one", apart, 1, LOW, HIGH),
        ratio("one's own text stays fast", apart, 2, 0, FAST),
        ratio("(without isolation another's text is known)", shared, 1, 0, FAST),
    ]


def pair(deployment: Deployment, isolated: str) -> tuple[str, str]:
    """Return the keys of two new accounts."""
    keys = []
    for name in (f"Alice, isolated {isolated}", f"Bob, isolated {isolated}"):
        options = ("--credit", "1", "--isolate-prompts", isolated)
        made = manage(deployment.env, "create_account", name, *options)
        assert made.returncode == 0, made.stderr
        keys.append(issue_key(deployment, name))
    return keys[0], keys[1]


def asking(server: Gunicorn) -> Ask:
    """Return what sends a text with a key, and returns how long the model took to read it."""

    def ask(key: str, text: str) -> float:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "options": {"num_predict": 1},
            "stream": False,
        }
        headers = {"Authorization": f"Bearer {key}"}
        response = requests.post(f"{server.url}/api/chat", json=body, headers=headers, timeout=120)
        assert response.status_code == 200, response.text
        return float(response.json()["prompt_eval_duration"])

    return ask


def one_round(ask: Ask, dice: random.Random, alice: str, bob: str) -> tuple[float, float, float]:
    """Return Bob's times for an unknown text and for Alice's, and Alice's for her own text again.

    Which of Bob's two comes first changes, so that neither has the warmer machine.
    """
    secret, unknown = text(dice), text(dice)
    ask(alice, secret)
    if dice.random() < 0.5:
        fresh, guessed = ask(bob, unknown), ask(bob, secret)
    else:
        guessed, fresh = ask(bob, secret), ask(bob, unknown)
    return fresh, guessed, ask(alice, secret)


def text(dice: random.Random) -> str:
    return " ".join(f"{dice.choice(WORDS)}{dice.randrange(10)}" for _ in range(LENGTH))


def ratio(
    promise: str, rounds: list[tuple[float, float, float]], which: int, low: float, high: float
) -> Figure:
    """The median of one time, divided by that of an unknown text."""
    unknown = statistics.median(one[0] for one in rounds) / 1e6
    found = statistics.median(one[which] for one in rounds) / 1e6
    measured = f"{found:.0f} ms : {unknown:.0f} ms = {found / unknown:.2f}"
    kept = low <= found / unknown <= high
    return Figure("P25", promise, f"{low:g} to {high:g}", measured, kept)


if __name__ == "__main__":
    for figure in isolation():
        print(figure)
