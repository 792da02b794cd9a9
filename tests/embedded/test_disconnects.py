"""A client that disconnects stops its generation; more requests than slots are queued."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedded.slots import ClientDisconnected, QueueFull, Slots
from tests.servers.embedded import EmbeddedModelServer

# Without a disconnect these take minutes.
LONG = {"prompt": "Write a very long story.", "options": {"num_predict": 2000, "seed": 1}}
LONG_PROMPT = {"prompt": " ".join(f"word{n}" for n in range(480)), "options": {"num_predict": 5}}


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_stops_a_generation(server: EmbeddedModelServer, stream: bool) -> None:
    before = server.state()["disconnected"]
    sock = server.open("/api/generate", stream=stream, **LONG)
    server.wait_until(lambda state: state["in_use"] == 1)
    sock.close()
    server.wait_until(lambda state: state["disconnected"] == before + 1)
    assert server.state()["in_use"] == 0


def test_a_disconnect_in_the_middle_of_a_stream_stops_it(server: EmbeddedModelServer) -> None:
    before = server.state()["disconnected"]
    with server.post("/api/generate", **LONG) as response:
        assert json.loads(response.readline())["done"] is False
    server.wait_until(lambda state: state["disconnected"] == before + 1)


def test_a_stopped_generation_uses_no_more_processor_time(server: EmbeddedModelServer) -> None:
    sock = server.open("/api/generate", **LONG)
    server.wait_until(lambda state: state["in_use"] == 1)
    sock.close()
    server.wait_until(lambda state: state["in_use"] == 0)

    used = [server.state()["cpu_seconds"]]

    def is_idle(state: dict[str, float]) -> bool:
        # A response to this test's own question takes milliseconds, a token tens of them.
        used.append(state["cpu_seconds"])
        return len(used) > 20 and used[-1] - used[-20] < 0.1

    server.wait_until(is_idle)


def test_a_disconnect_stops_the_processing_of_a_prompt(server: EmbeddedModelServer) -> None:
    before = server.state()["disconnected"]
    sock = server.open("/api/generate", **LONG_PROMPT)
    server.wait_until(lambda state: state["in_use"] == 1)
    sock.close()
    server.wait_until(lambda state: state["disconnected"] == before + 1)


def test_a_queued_request_leaves_the_queue_with_its_client(server: EmbeddedModelServer) -> None:
    running = [server.open("/api/generate", **LONG) for _ in range(2)]
    server.wait_until(lambda state: state["in_use"] == 2)
    queued = server.open("/api/generate", **LONG)
    server.wait_until(lambda state: state["queued"] == 1)
    queued.close()
    assert server.wait_until(lambda state: state["queued"] == 0)["in_use"] == 2
    for sock in running:
        sock.close()
    server.wait_until(lambda state: state["in_use"] == 0)


def test_more_requests_than_slots_are_all_served(server: EmbeddedModelServer) -> None:
    def count(_number: int) -> int:
        reply = server.reply(prompt="Hi", options={"num_predict": 8})
        return int(reply["eval_count"])

    with ThreadPoolExecutor(6) as pool:
        assert all(0 < tokens <= 8 for tokens in pool.map(count, range(6)))


def test_a_request_to_a_full_queue_is_rejected() -> None:
    slots = Slots(1, max_queued=0)
    with pytest.raises(QueueFull), slots.acquire(lambda: True):
        pass


def test_a_queued_request_that_nobody_wants_frees_its_position() -> None:
    slots = Slots(1)
    with slots.acquire(lambda: True):
        with pytest.raises(ClientDisconnected), slots.acquire(lambda: False):
            pass
        assert (slots.in_use, slots.queued) == (1, 0)
    assert slots.in_use == 0
