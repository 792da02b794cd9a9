"""What an answer that is not streamed takes: its body as text, and a share of the room for all."""

import json
from typing import Any

import pytest

from gateway.dialects.json_fragments import Items, compact, dump, items, one_part
from gateway.errors import GatewayBusy, TooLarge
from gateway.relay import response_memory
from gateway.relay.response_memory import MAX_ANSWER_BYTES, MAX_BYTES, Share
from gateway.upstream.chunk import Chunk
from gateway.validation.large_bodies import Room


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    made = Room(timeout=0.01)
    monkeypatch.setattr(response_memory, "room", made)
    return made


def of_size(size: int) -> Chunk:
    return Chunk(fields={"embeddings": Items([bytes(size)])})


def is_free(room: Room) -> bool:
    try:
        room.take(MAX_BYTES, MAX_BYTES)
    except GatewayBusy:
        return False
    room.give(MAX_BYTES)
    return True


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"a": [1, "x"]}, '{"a":[1,"x"]}'),
        ({"a": Items(), "b": b"[1.0]"}, '{"a":[],"b":[1.0]}'),
        ([{"n": items([1, "é", {"x": []}])}, Items([b"1,2", b"3"])], None),
    ],
)
def test_what_is_written_already_is_passed_on(value: Any, written: str | None) -> None:
    found = dump(value, (",", ":")).decode("ascii")

    assert found == (written or '[{"n":[1,"\\u00e9",{"x":[]}]},[1,2,3]]')


def test_what_is_no_json_is_an_error() -> None:
    for value in ({"a": float("nan")}, {"a": {1, 2}}):
        with pytest.raises((TypeError, ValueError)):
            dump(value)


def test_only_the_last_chunk_keeps_fields_of_the_model_server() -> None:
    native: dict[str, Any] = {"created_at": "now", "logprobs": [{"token": "a"}]}

    first = compact(Chunk(text="a", fields=native), logprobs=one_part(native["logprobs"]))
    last = compact(Chunk(done=True, fields=native), logprobs=Items())

    assert json.loads(dump(first.fields)) == {"logprobs": [{"token": "a"}]}
    assert first.text == "a" and last.fields == native


def test_an_answer_in_parts_takes_its_room_at_the_first(room: Room) -> None:
    first = Share(parts=10)
    first.add(of_size(MAX_ANSWER_BYTES // 10))
    other = Share(parts=10)

    with pytest.raises(GatewayBusy):
        other.add(of_size(MAX_ANSWER_BYTES // 10))
    for _ in range(9):
        first.add(of_size(MAX_ANSWER_BYTES // 10))

    first.release()
    other.release()
    first.release()
    assert is_free(room)


@pytest.mark.parametrize("parts", [1, 3])
def test_an_answer_that_is_too_large_is_refused_at_once(room: Room, parts: int) -> None:
    size = MAX_ANSWER_BYTES if parts == 1 else MAX_ANSWER_BYTES // 2
    share = Share(parts)

    with pytest.raises(TooLarge, match="64 MiB"):
        share.add(of_size(size + 1))

    assert is_free(room)


def test_a_small_answer_needs_no_room(room: Room) -> None:
    room.take(MAX_BYTES, MAX_BYTES)

    Share().add(of_size(100_000))
