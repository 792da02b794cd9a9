"""Text that the embedded model generates: streams, counts, options, schemas."""

import json
from typing import Any

import pytest

from embedded.engine import Call, cut_to_fit
from tests.servers.embedded import EMBED, EmbeddedModelServer

QUESTION = "Why is the sky blue?"
REPEATABLE = {"temperature": 0, "num_predict": 24}
LONG = {"prompt": "Write a very long story.", "options": {"num_predict": 2000, "seed": 1}}


def test_a_stream_has_the_text_of_a_whole_response(server: EmbeddedModelServer) -> None:
    chunks = server.lines(prompt=QUESTION, options=REPEATABLE)
    whole = server.reply(prompt=QUESTION, options=REPEATABLE)
    assert "".join(chunk["response"] for chunk in chunks) == whole["response"]
    assert [chunk["done"] for chunk in chunks] == [False] * 24 + [True]


def test_chunks_arrive_while_the_model_generates(server: EmbeddedModelServer) -> None:
    with server.post("/api/generate", **LONG) as response:
        assert json.loads(response.readline())["done"] is False
        assert server.state()["in_use"] == 1
    server.wait_until(lambda state: state["in_use"] == 0)


def test_the_last_object_has_counts_and_durations(server: EmbeddedModelServer) -> None:
    last = server.lines(prompt=QUESTION, options=REPEATABLE)[-1]
    assert (last["eval_count"], last["done_reason"]) == (24, "length")
    durations = [last[f"{name}_duration"] for name in ("total", "load", "prompt_eval", "eval")]
    assert all(type(duration) is int and duration > 0 for duration in durations)


def test_a_raw_prompt_counts_only_its_own_tokens(server: EmbeddedModelServer) -> None:
    last = server.reply(prompt="hello world", raw=True, options={"num_predict": 1})
    embedded = server.embed("hello world")
    assert last["prompt_eval_count"] == embedded["prompt_eval_count"] == 2


def test_a_prompt_in_the_cache_counts_in_full(server: EmbeddedModelServer) -> None:
    prompt: dict[str, Any] = {"prompt": "Name a bird.", "options": {"num_predict": 2}}
    first, second = (server.reply(**prompt)["prompt_eval_count"] for _ in range(2))
    assert first == second > 20


def test_a_complete_answer_ends_with_stop(server: EmbeddedModelServer) -> None:
    last = server.reply(prompt="Say only: yes", options={"temperature": 0})
    assert last["done_reason"] == "stop"


def test_a_stop_string_ends_the_text_before_it(server: EmbeddedModelServer) -> None:
    text = server.reply(prompt=QUESTION, options=REPEATABLE)["response"]
    word = text.split()[3]
    stopped = server.reply(prompt=QUESTION, options=REPEATABLE | {"stop": [word]})
    assert stopped["done_reason"] == "stop"
    assert stopped["response"] == text[: text.index(word)]


def test_equal_seeds_give_equal_texts(server: EmbeddedModelServer) -> None:
    options = {"temperature": 0.9, "num_predict": 20}
    texts = [
        server.reply(prompt="Tell a story.", options=options | {"seed": seed})["response"]
        for seed in (7, 7, 8, 7)
    ]
    assert texts[0] == texts[1] == texts[3] != texts[2]


def test_the_model_reads_a_system_prompt(server: EmbeddedModelServer) -> None:
    without = server.reply(prompt="Hi", options=REPEATABLE)
    system = "You are a pirate. " * 20
    with_system = server.reply(prompt="Hi", system=system, options=REPEATABLE)
    assert with_system["prompt_eval_count"] > without["prompt_eval_count"] + 50


def test_a_chat_returns_a_message(server: EmbeddedModelServer) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    last = server.reply("/api/chat", messages=messages, options=REPEATABLE)
    assert last["message"]["role"] == "assistant"
    assert last["message"]["content"]


@pytest.mark.parametrize("source", [{"prompt": "A person."}, {"prompt": "A person: ", "raw": True}])
def test_a_response_follows_its_schema(server: EmbeddedModelServer, source: dict[str, Any]) -> None:
    properties = {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"]}
    text = server.reply(**source, format=schema, options={"temperature": 0})["response"]
    assert json.loads(text).keys() >= {"name", "age"}


def test_json_mode_starts_an_object(server: EmbeddedModelServer) -> None:
    text = server.reply(prompt="A cat.", format="json", options=REPEATABLE)["response"]
    assert text.lstrip().startswith("{")


def test_every_token_has_the_requested_log_probabilities(server: EmbeddedModelServer) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "options": {"num_predict": 3}}
    reply = server.reply(prompt="Hi", **fields)
    assert [len(token["top_logprobs"]) for token in reply["logprobs"]] == [2, 2, 2]


def test_an_emoji_of_several_tokens_is_sent_whole(server: EmbeddedModelServer) -> None:
    schema = {"enum": ["🦜🦜"]}
    chunks = server.lines(prompt="A parrot", format=schema, options={"temperature": 0})
    assert json.loads("".join(chunk["response"] for chunk in chunks)) == "🦜🦜"


def test_unusual_options_and_lone_surrogates_are_accepted_as_by_ollama(
    server: EmbeddedModelServer,
) -> None:
    options = {"num_predict": 1.9, "seed": 1e30, "top_k": -1e30, "mirostat": "x", "min_p": None}
    assert server.reply(prompt="\ud800 hi", options=options)["eval_count"] == 1


# --- Prompts that do not fit ---


def test_a_long_prompt_is_cut_to_the_context(server: EmbeddedModelServer) -> None:
    messages = [{"role": "user", "content": "word " * 3000}]
    reply = server.reply("/api/chat", messages=messages, options={"num_predict": 1})
    assert 900 < reply["prompt_eval_count"] < 1200


def test_a_long_prompt_that_may_not_be_cut_is_rejected_with_its_token_count(
    server: EmbeddedModelServer,
) -> None:
    messages = [{"role": "user", "content": "word " * 3000}]
    response = server.post("/api/chat", messages=messages, truncate=False)
    error = json.loads(json.loads(response.read())["error"])["error"]
    assert (response.status, error["n_ctx"]) == (400, 2048)
    assert error["n_prompt_tokens"] > 3000


def test_the_oldest_messages_are_removed_first_and_the_last_is_cut() -> None:
    messages = [
        {"role": role, "content": role * 100} for role in ("system", "user", "assistant", "user")
    ]
    call = Call(messages=messages)
    for kept in ([0, 2, 3], [0, 3]):
        call = cut_to_fit(call, 4096)
        assert call.messages == [messages[n] for n in kept]
    last = {"role": "user", "content": "user" * 25}
    assert cut_to_fit(call, 4096).messages == [messages[0], last]
    assert cut_to_fit(Call(prompt="a" * 400), 4096).prompt == "a" * 100


def test_the_embedding_model_does_not_generate(server: EmbeddedModelServer) -> None:
    response = server.post("/api/generate", model=EMBED, prompt="Hi")
    assert response.status == 400
