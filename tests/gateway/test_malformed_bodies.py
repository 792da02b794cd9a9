"""A malformed body or query is a clean 400, and nothing is held."""

import gzip
import json
from typing import Any

import pytest
from django.test import Client

from billing.models import Hold
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller
from tests.harness.images import encoded, png

PATHS = ["/generate", "/api/chat"]


def is_refused(answer: Any, *statuses: int) -> bool:
    """Tell whether an answer is an error of the client's, as every client of ours reads it."""
    body = json.loads(answer.content)
    return (
        answer.status_code in (statuses or (400,))
        and set(body) == {"error", "code", "request_id"}
        and all(isinstance(value, str) for value in body.values())
        and len(body["error"]) < 300
        and answer["x-request-id"] == body["request_id"]
    )


def nothing_happened(ollama: FakeOllama) -> bool:
    return ollama.requests == [] and not Hold.objects.exists()


# --- Bodies ---------------------------------------------------------------------------------------

GOOD = b'{"model": "llama3", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]'

BODIES = {
    # duplicates and lookalikes
    "duplicate model": GOOD + b', "model": "mistral"}',
    "duplicate options": GOOD + b', "options": {}, "options": {"seed": 1}}',
    "duplicate in options": GOOD + b', "options": {"seed": 1, "seed": 2}}',
    "MODEL": GOOD + b', "MODEL": "mistral"}',
    "long s in system": GOOD + b', "\\u017fystem": "x"}',
    "Kelvin in keep_alive": GOOD + b', "\\u212aeep_alive": -1}',
    "Num_Ctx in options": GOOD + b', "options": {"Num_Ctx": 1}}',
    # depth and size
    "value nested 5,000 times": GOOD + b', "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "value nested 40,000 times": GOOD + b', "x": ' + b"[" * 40_000,
    "options nested 40,000 times": GOOD + b', "options": ' + b'{"a":' * 40_000,
    "format nested 100 times": GOOD + b', "format": ' + b'{"a":' * 100 + b"1" + b"}" * 101,
    "5,000 digits": GOOD + b', "options": {"seed": ' + b"9" * 5000 + b"}}",
    # characters
    "NaN": GOOD + b', "options": {"temperature": NaN}}',
    "1e999": GOOD + b', "options": {"temperature": 1e999}}',
    "lone surrogate in the model": b'{"model": "\\ud800", "prompt": "x", "messages": [{}]}',
    "NUL in the model": b'{"model": "llama3\\u0000", "prompt": "x", "messages": [{}]}',
    "U+202E in the model": '{"model": "\u202ellama3", "prompt": "x", "messages": [{}]}'.encode(),
    "BOM": b"\xef\xbb\xbf" + GOOD + b"}",
    "UTF-16": (GOOD + b"}").decode().encode("utf-16"),
    "Latin-1": GOOD + b', "x": "\xe9"}',
    "gzip": gzip.compress(GOOD + b"}"),
    # shape
    "blank": b"  ",
    "null": b"null",
    "number": b"5",
    "list": b"[" + GOOD + b"}]",
    "trailing garbage": GOOD + b"} x",
    "two documents": GOOD + b"}" + GOOD + b"}",
    "form": b"model=llama3&prompt=hi",
    "multipart": b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nllama3\r\n--x--\r\n',
    # types
    "model is a list": b'{"model": ["llama3"], "prompt": "hi", "messages": [{}]}',
    "model is missing": b'{"prompt": "hi", "messages": [{"content": "x"}]}',
    "stream is text": GOOD + b', "stream": "yes"}',
    "options is a list": GOOD + b', "options": []}',
    "num_predict is text": GOOD + b', "options": {"num_predict": "100"}}',
    "think is a number": GOOD + b', "think": 1}',
    "format is xml": GOOD + b', "format": "xml"}',
}


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_malformed_body_is_a_clean_400(
    alice: Caller, ollama: FakeOllama, path: str, body: bytes
) -> None:
    assert is_refused(alice.post(path, body))
    assert nothing_happened(ollama)


FIELDS = {
    "prompt is a list": ("/generate", {"prompt": ["hi"]}),
    "prompt is zero": ("/api/generate", {"prompt": 0}),
    "prompt is false": ("/api/generate", {"prompt": False}),
    "prompt is an object": ("/api/generate", {"prompt": {}}),
    "system is a number": ("/generate", {"prompt": "hi", "system": 5}),
    "messages is text": ("/chat", {"messages": "hi"}),
    "messages is an object": ("/api/chat", {"messages": {}}),
    "messages is false": ("/api/chat", {"messages": False}),
    "content is a list": ("/api/chat", {"messages": [{"role": "user", "content": [{}]}]}),
    "role is unknown": ("/chat", {"messages": [{"role": "root", "content": "hi"}]}),
    "tools is an object": ("/chat", {"messages": [{"content": "hi"}], "tools": {}}),
    "input is a number": ("/embedding", {"input": 5}),
    "input is a list of numbers": ("/api/embed", {"input": [1, 2]}),
    "input is zero": ("/api/embed", {"input": 0}),
    "too many inputs": ("/api/embed", {"input": ["x"] * 2049}),
    "embedding prompt is a list": ("/api/embeddings", {"prompt": ["hi"]}),
    "image is a URL": ("/generate", {"prompt": "hi", "images": ["http://10.0.0.1/x.png"]}),
    "image is not base64": ("/generate", {"prompt": "hi", "images": ["%%%"]}),
    "image is empty": ("/generate", {"prompt": "hi", "images": [""]}),
    "image is SVG": ("/generate", {"prompt": "hi", "images": [encoded(b"<svg/>")]}),
    "image is enormous": ("/generate", {"prompt": "hi", "images": [encoded(png(50_000, 50_000))]}),
    "200 images": ("/generate", {"prompt": "hi", "images": [encoded(png())] * 200}),
    "image in a message": ("/chat", {"messages": [{"content": "hi", "images": ["x"]}]}),
    "prompt is too large": ("/generate", {"prompt": "x" * (1024 * 1024 + 1)}),
    "schema of a megabyte": ("/generate", {"prompt": "x", "format": {"a": "(a+)+" * 250_000}}),
    "1,000 stops": ("/generate", {"prompt": "hi", "options": {"stop": ["x"] * 1000}}),
    "raw": ("/api/generate", {"prompt": "hi", "raw": True}),
    "template": ("/api/generate", {"prompt": "hi", "template": "{{ .Prompt }}"}),
    "context": ("/api/generate", {"prompt": "hi", "context": [1, 2]}),
    "cloud": ("/generate", {"model": "gpt-oss:20b-cloud", "prompt": "hi"}),
    "no name": ("/generate", {"model": "../x", "prompt": "hi"}),
}


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize(("path", "fields"), FIELDS.values(), ids=FIELDS)
def test_a_field_that_makes_no_sense_is_a_clean_400(
    alice: Caller, ollama: FakeOllama, path: str, fields: dict[str, Any]
) -> None:
    assert is_refused(alice.post(path, {"model": "llama3", **fields}))
    assert nothing_happened(ollama)


SAFE = {
    "NUL": "a\x00b",
    "lone surrogate": "\ud800",
    "U+FEFF and U+202E": "\ufeff\u202e",
    "100,000 signs": "\u2028" * 100_000,
    "html": "<script>alert(1)</script>",
    "template": "{{ .System }}{% debug %}",
}


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("prompt", SAFE.values(), ids=SAFE)
def test_odd_characters_in_a_prompt_do_no_harm(
    alice: Caller, ollama: FakeOllama, prompt: str
) -> None:
    ends = "end" + prompt
    answer = alice.post("/generate", json.dumps({"model": "llama3", "prompt": ends}).encode())

    assert answer.status_code == 200 and ollama.requests[-1].json["prompt"] == ends
    assert Hold.objects.get().state == "settled"


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("extra", [{"k " * 500_000: 1}, dict.fromkeys(map(str, range(40_000)))])
def test_huge_unknown_keys_are_dropped(
    alice: Caller, ollama: FakeOllama, extra: dict[str, Any]
) -> None:
    answer = alice.post("/generate", {"model": "llama3", "prompt": "hi", **extra})

    assert answer.status_code == 200
    assert set(ollama.requests[-1].json) == {"model", "stream", "prompt", "options"}


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize(
    ("extra", "status"),
    [({"k" * 1_000_000: 1}, 400), (dict.fromkeys(map(str, range(100_000))), 413)],
    ids=["one key like an image", "100,000 keys"],
)
def test_keys_that_no_client_writes_are_refused(
    alice: Caller, ollama: FakeOllama, extra: dict[str, Any], status: int
) -> None:
    answer = alice.post("/generate", {"model": "llama3", "prompt": "hi", **extra})

    assert is_refused(answer, status) and nothing_happened(ollama)


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "x", ""])
def test_plain_curl_works_whatever_type_it_claims(
    alice: Caller, ollama: FakeOllama, kind: str
) -> None:
    body = b'{"model": "llama3", "prompt": "hi"}'
    answer = alice.client.generic("POST", "/generate", body, kind, headers=alice.headers)

    assert answer.status_code == 200


ACCEPTS = ["*/*;q=", ",".join(["a/b;q=0.1"] * 900), "text/event-stream", ";;;,,,", "é", "*/*;q=x"]


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("accept", ACCEPTS, ids=lambda accept: accept[:12])
def test_no_accept_header_breaks_anything(alice: Caller, ollama: FakeOllama, accept: str) -> None:
    answer = alice.client.get("/models", HTTP_ACCEPT=accept, headers=alice.headers)

    assert answer.status_code == 200 and answer["Content-Type"] == "application/json"


def test_no_length_is_a_411(alice: Caller, ollama: FakeOllama) -> None:
    answer = alice.client.generic("POST", "/generate", b"", headers=alice.headers)

    assert is_refused(answer, 411) and nothing_happened(ollama)


def test_a_body_that_is_too_large_is_a_413(
    alice: Caller, ollama: FakeOllama, settings: Any
) -> None:
    settings.MAX_BODY_BYTES = 100

    assert is_refused(alice.post("/generate", b" " * 101), 413) and nothing_happened(ollama)


def test_a_compressed_body_is_a_400(alice: Caller, ollama: FakeOllama) -> None:
    headers = {**alice.headers, "Content-Encoding": "gzip"}
    body = gzip.compress(GOOD + b"}")
    answer = alice.client.generic("POST", "/generate", body, headers=headers)

    assert is_refused(answer) and nothing_happened(ollama)


def test_without_a_key_a_body_is_not_even_read(db: None, ollama: FakeOllama) -> None:
    answer = Client().generic("POST", "/generate", b"[" * 100_000)

    assert answer.status_code == 401


# --- Queries --------------------------------------------------------------------------------------

QUERIES = [
    "from=yesterday",
    "from=2026-13-01",
    "from=0001-01-01",
    "to=9999-12-31",
    "from=2026-02-01&to=2026-01-01",
    "from=2020-01-01&to=2026-01-01",
    "from=%00",
    "from=%ff",
    "from=",
    "from=" + "9" * 5000,
    "group_by=secret",
    "group_by=key__digest",
    "group_by=day&group_by=account",
]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query[:32])
def test_a_history_that_makes_no_sense_is_a_clean_400(alice: Caller, query: str) -> None:
    answer = alice.client.get(f"/usage/history?{query}", headers=alice.headers)

    assert is_refused(answer)
