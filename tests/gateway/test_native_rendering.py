"""Lines of the model server become responses of Ollama's API and of our own REST family."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.dialects import OLLAMA, REST
from gateway.dialects.ollama import ProgressRenderer
from gateway.errors import (
    BadRequest,
    GatewayError,
    ModelNotFound,
    RegistryUnreachable,
    UpstreamBroke,
)
from gateway.metering import Operation
from gateway.upstream.chunk import Chunk
from gateway.upstream.protocol import read_chunk, read_progress, truncated
from tests.harness.native import CHAT, EMBED, GENERATE, LEGACY, RECEIPT, USAGE, native, prompt, read

# --- Reading the model server's lines -------------------------------------------------------------


def test_a_line_is_read_into_a_chunk() -> None:
    chunk = native(response="Hi", done=False, prompt_eval_count=5, eval_count=9)

    assert (chunk.text, chunk.done, chunk.carries_output) == ("Hi", False, True)
    assert (chunk.prompt_tokens, chunk.completion_tokens) == (5, 9)


def test_a_chat_line_is_read_from_its_message() -> None:
    calls = [{"function": {"name": "f"}}]
    chunk = native(CHAT, message={"content": "a", "thinking": "b", "tool_calls": calls})

    assert (chunk.text, chunk.thinking, chunk.tool_calls) == ("a", "b", calls)


def test_an_embedding_is_whole_at_once() -> None:
    chunk = native(EMBED, embeddings=[[1.0]], prompt_eval_count=3)

    assert chunk.done and (chunk.prompt_tokens, chunk.completion_tokens) == (3, 0)


NONSENSE = [
    *[
        b"",
        b" ",
        b"null",
        b"5",
        b'"x"',
        b"[]",
        b"{",
        b'{"done":tr',
        b"<html>",
        b"\xff\xfe",
        b"{}{}",
    ],
    *[b"[" * 100_000, b'{"response":NaN}', b'{"x":' + b"9" * 5000 + b"}", b'{"message":"hi"}'],
    *[b'{"message":[1]}', b'{"response":"\xff"}', b'{"x":1e999}', b'{"response":"","y":[-1e999]}'],
]


@pytest.mark.parametrize("line", NONSENSE, ids=lambda line: repr(line)[:24])
def test_a_line_that_is_no_chunk_breaks_the_answer(line: bytes) -> None:
    with pytest.raises(UpstreamBroke):
        read_chunk(GENERATE, line)


@pytest.mark.parametrize("line", [b'{"error":"boom"}', b'{"error":{"a":1},"response":"x"}'])
def test_an_error_line_is_told_as_an_error(line: bytes) -> None:
    with pytest.raises(BadRequest):
        read_chunk(GENERATE, line)


@pytest.mark.parametrize("found", [None, {}, "x", 5, [["x"]], [[10**400, 0.5]], [[None]]])
def test_an_embedding_without_vectors_breaks_the_answer(found: Any) -> None:
    with pytest.raises(UpstreamBroke):
        native(EMBED, embeddings=found)


@pytest.mark.parametrize(
    "line",
    [
        b'{"embeddings":[[1e999]]}',
        b'{"embeddings":[[0.5],[0.5,-1e999]]}',
        b'{"embeddings":[[1e999,-1e999]]}',
        b'{"embeddings":[[0.5]],"total_duration":1e999}',
    ],
)
def test_a_number_that_is_too_large_breaks_an_embedding(line: bytes) -> None:
    with pytest.raises(UpstreamBroke):
        read_chunk(EMBED, line)


def test_fields_of_a_wrong_type_say_nothing() -> None:
    chunk = native(response=5, thinking=["x"], tool_calls="f", done="true", eval_count="9")

    assert not chunk.carries_output and not chunk.done and chunk.completion_tokens is None


@examples(deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]":,truefalsdonrp0 ', max_size=40).map(str.encode))
def test_no_line_does_worse_than_breaking_the_answer(line: bytes) -> None:
    for operation in Operation:
        with suppress(UpstreamBroke, BadRequest):
            read_chunk(operation, line)


@pytest.mark.parametrize(
    "chunk",
    [native(response="x", thinking="y", logprobs=[{"token": "x"}]), native(CHAT, message={})],
)
def test_an_answer_cut_short_ends_with_length_and_no_text(chunk: Chunk) -> None:
    end = truncated(chunk)

    assert end.done and end.fields["done_reason"] == "length" and not end.carries_output
    assert not set(end.fields) & {"thinking", "logprobs"}
    assert end.fields.get("response", "") == "" and end.prompt_tokens is None


# --- Writing answers ------------------------------------------------------------------------------


def test_a_chunk_is_passed_on_with_the_clients_spelling() -> None:
    line = OLLAMA.renderer(prompt(), "id").chunk(native(model="llama3:latest", response="a", x=1))

    assert read(line) == {"model": "LLaMA3", "response": "a", "x": 1}


@pytest.mark.parametrize("name", ["remote_model", "remote_host", "_debug_info", "error"])
def test_what_is_the_operators_is_not_passed_on(name: str) -> None:
    line = OLLAMA.renderer(prompt(), "id").chunk(Chunk(fields={name: None, "response": "a"}))

    assert name not in read(line)


def test_the_last_chunk_carries_the_usage() -> None:
    for dialect in (OLLAMA, REST):
        last = native(response="", done=True, done_reason="stop")
        assert read(dialect.renderer(prompt(), "id").last(last, RECEIPT))["usage"] == USAGE


def test_without_a_receipt_there_is_no_usage() -> None:
    for dialect in (OLLAMA, REST):
        assert "usage" not in read(dialect.renderer(prompt(), "id").last(native(done=True), None))


def test_a_stream_that_broke_ends_with_an_error_and_not_with_done() -> None:
    for dialect in (OLLAMA, REST):
        ending = read(dialect.renderer(prompt(), "the id").error(UpstreamBroke()))
        assert ending == {
            "error": "The model server broke off its answer.",
            "code": "upstream_broke",
            "request_id": "the id",
        }


def test_a_whole_answer_joins_its_pieces() -> None:
    chunks = [native(thinking="hm "), native(response="a", logprobs=[{"token": "a"}])]
    chunks += [native(response="b"), native(response="", done=True, eval_count=3)]

    answer = read(OLLAMA.renderer(prompt(), "id").body(chunks, RECEIPT))

    assert answer == {
        "model": "LLaMA3",
        "response": "ab",
        "thinking": "hm ",
        "logprobs": [{"token": "a"}],
        "done": True,
        "eval_count": 3,
        "usage": USAGE,
    }


def test_a_whole_chat_joins_text_and_calls() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    chunks = [native(CHAT, message={"content": "a"}), native(CHAT, message={"tool_calls": [call]})]
    chunks.append(native(CHAT, message={"content": ""}, done=True))

    message = {"role": "assistant", "content": "a", "tool_calls": [call]}
    assert read(OLLAMA.renderer(prompt(CHAT), "id").body(chunks, None))["message"] == message
    answer = read(REST.renderer(prompt(CHAT), "id").body(chunks, None))
    assert (answer["response"], answer["message"]) == ("a", message)


@pytest.mark.parametrize("odd", [5, "x", {"a": 1}, [5], None])
def test_odd_probabilities_break_no_answer(odd: Any) -> None:
    chunks = [native(response="a", logprobs=odd), native(done=True)]

    assert read(REST.renderer(prompt(), "id").body(chunks, None))["response"] == "a"


def test_our_own_family_shows_the_same_few_fields() -> None:
    renderer = REST.renderer(prompt(), "id")
    chunk = native(response="a", created_at="now", total_duration=1)

    assert read(renderer.chunk(chunk)) == {"model": "LLaMA3", "response": "a", "done": False}
    last = read(renderer.last(native(response="", done=True, context=[1]), RECEIPT))
    assert set(last) == {"model", "response", "done", "done_reason", "usage"}


@pytest.mark.parametrize(
    ("asked", "shown"),
    [("hi", {"embedding": [1.0]}), (["hi"], {"embeddings": [[1.0]]})],
)
def test_one_text_has_one_embedding_and_a_list_has_a_list(asked: Any, shown: Any) -> None:
    renderer = REST.renderer(prompt(EMBED, input=asked), "id")

    answer = read(renderer.body([native(EMBED, embeddings=[[1.0]])], None))
    assert answer == {"model": "LLaMA3", **shown}


@pytest.mark.parametrize(("vectors", "shown"), [([[1.0]], [1.0]), ([], [])])
def test_the_older_embeddings_route_has_one_vector(vectors: Any, shown: Any) -> None:
    answer = LEGACY.renderer(prompt(EMBED), "id").body([native(EMBED, embeddings=vectors)], None)

    assert read(answer) == {"embedding": shown}


@examples(deadline=None)
@given(st.text(max_size=60))
def test_a_line_is_one_line_of_ascii_and_holds_the_text(text: str) -> None:
    for dialect in (OLLAMA, REST):
        line = dialect.renderer(prompt(), "id").chunk(native(response=text))
        assert line.isascii() and read(line)["response"] == text


def test_an_error_is_a_string_with_its_code_beside_it() -> None:
    for dialect in (OLLAMA, REST):
        body = read(dialect.error(GatewayError("No."), "id"))
        assert body == {"error": "No.", "code": "internal_error", "request_id": "id"}


# --- Pulling --------------------------------------------------------------------------------------


def test_progress_is_done_with_success() -> None:
    assert not read_progress("m", b'{"status": "pulling manifest"}').done
    assert read_progress("m", b'{"status": "success"}').done


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("pull model manifest: file does not exist", ModelNotFound),
        ("max retries exceeded: dial tcp 10.0.0.5: refused", RegistryUnreachable),
        ("digest mismatch, file must be downloaded again", RegistryUnreachable),
        (
            "pull model manifest: dial tcp: lookup registry.ollama.ai: no such host",
            RegistryUnreachable,
        ),
        (
            "pull model manifest: http: server gave HTTP response to HTTPS client",
            RegistryUnreachable,
        ),
        ("pull model manifest: tls: failed to verify certificate", RegistryUnreachable),
    ],
)
def test_an_error_line_of_a_pull_is_told_in_our_words(text: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as raised:
        read_progress("m", json.dumps({"error": text}).encode())
    assert text not in str(raised.value)


def test_progress_is_passed_on_as_it_is() -> None:
    layer = {"status": "pulling 0123", "digest": "sha256:0123", "total": 9, "completed": 3}

    renderer = ProgressRenderer("id")
    assert read(renderer.chunk(Chunk(fields=layer))) == layer
    assert read(
        renderer.body([Chunk(fields=layer), Chunk(fields={"status": "success"})], None)
    ) == {"status": "success"}
