"""Which fields go upstream, and which names are rejected."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from billing.models import Hold
from gateway.errors import BadRequest
from gateway.validation import policy, rules
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller
from tests.harness.images import encoded, png
from tests.harness.policies import IMAGE, LOAD_TIME, SAID, build

# --- Fields ---------------------------------------------------------------------------------------

CALL = {"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"a": {}}}}

PASSED = [
    ("generate", "prompt", "hi"),
    ("generate", "suffix", "end"),
    ("generate", "system", "be brief"),
    ("generate", "images", [IMAGE]),
    ("generate", "think", True),
    ("generate", "think", "max"),
    ("generate", "format", "json"),
    ("generate", "format", {"type": "object"}),
    ("generate", "truncate", False),
    ("generate", "logprobs", True),
    ("generate", "top_logprobs", 20),
    ("chat", "tools", []),
    ("chat", "tools", [TOOL]),
    ("chat", "messages", [{"role": "assistant", "content": "", "thinking": "hm"}]),
    ("chat", "messages", [{"role": "assistant", "tool_calls": [CALL]}]),
    ("chat", "messages", [{"role": "tool", "content": "4", "tool_name": "f"}]),
    ("chat", "messages", [{"role": "user", "content": "what?", "images": [IMAGE]}]),
    ("embed", "input", "hi"),
    ("embed", "input", ["a", "", "c"]),
    ("embed", "dimensions", 64),
]


@pytest.mark.parametrize(("operation", "name", "value"), PASSED)
def test_a_good_field_goes_upstream_as_it_is(operation: str, name: str, value: Any) -> None:
    assert build(operation, **{name: value}).body[name] == value


def test_a_role_is_sent_in_lower_case() -> None:
    assert build("chat", messages=[{"role": "USER"}]).body["messages"] == [{"role": "user"}]


def test_unknown_fields_inside_messages_and_tools_are_dropped() -> None:
    message: dict[str, Any] = {"role": "user", "content": "hi", "name": "x"}
    message |= {"cache_control": {}, "thinking": None}
    tool = {"type": "function", "function": {"name": "f", "strict": True}, "extra": 1}

    body = build("chat", messages=[message], tools=[tool]).body

    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert body["tools"] == [{"type": "function", "function": {"name": "f"}}]


WRONG = [
    ("generate", "prompt", 5),
    ("generate", "prompt", ["hi"]),
    ("generate", "suffix", {}),
    ("generate", "system", True),
    ("generate", "options", []),
    ("generate", "options", "x"),
    ("generate", "format", "xml"),
    ("generate", "format", 1),
    ("generate", "format", ["json"]),
    ("generate", "think", "none"),
    ("generate", "think", 1),
    ("generate", "think", ["high"]),
    ("generate", "truncate", "no"),
    ("generate", "logprobs", 1),
    ("generate", "top_logprobs", "5"),
    ("generate", "images", IMAGE),
    ("generate", "images", [5]),
    ("generate", "images", [IMAGE] * 200),
    ("generate", "images", [""]),
    ("generate", "images", ["data:image/png;base64," + IMAGE]),
    ("generate", "images", ["https://example.com/cat.png"]),
    ("generate", "images", [encoded(b"<svg/>")]),
    ("generate", "images", [encoded(png(50_000, 50_000))]),
    ("generate", "images", [encoded(png() + bytes(3_000))]),
    ("chat", "messages", "hi"),
    ("chat", "messages", {"role": "user"}),
    ("chat", "messages", ["hi"]),
    ("chat", "messages", [None]),
    ("chat", "tools", {}),
    ("chat", "tools", ["f"]),
    ("embed", "input", 5),
    ("embed", "input", [1, 2]),
    ("embed", "input", [["a"]]),
    ("embed", "input", {}),
    ("embed", "input", ["x"] * 4),
    ("embed", "dimensions", "64"),
    ("embed", "truncate", 0),
]
IDS = [f"{name}={json.dumps(value)[:16]}" for _, name, value in WRONG]


@pytest.mark.parametrize(("operation", "name", "value"), WRONG, ids=IDS)
def test_a_field_of_a_wrong_type_is_refused_by_name(operation: str, name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=name):
        build(operation, **{name: value})


WRONG_INSIDE = [
    ({"role": "wizard"}, r"messages\[0\]\.role"),
    ({"role": 5}, r"messages\[0\]\.role"),
    ({"content": [{"type": "text", "text": "hi"}]}, r"messages\[0\]\.content"),
    ({"images": ["x"]}, r"messages\[0\]\.images\[0\]"),
    ({"tool_calls": {}}, r"messages\[0\]\.tool_calls"),
    ({"tool_calls": [{"function": "f"}]}, r"tool_calls\[0\]\.function"),
    ({"tool_calls": [{"function": {"arguments": "{}"}}]}, r"function\.arguments"),
    ({"thinking": True}, r"messages\[0\]\.thinking"),
]


@pytest.mark.parametrize(("message", "named"), WRONG_INSIDE, ids=[n for _, n in WRONG_INSIDE])
def test_a_wrong_field_of_a_message_is_refused_with_its_place(message: Any, named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        build("chat", messages=[message])


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"items": value}
    return value


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        ("generate", {"format": nested(100)}),
        ("chat", {"tools": [{"function": {"parameters": nested(100)}}]}),
        ("chat", {"messages": [{"tool_calls": [{"function": {"arguments": nested(100)}}]}]}),
    ],
    ids=["format", "tools", "tool_calls"],
)
def test_a_schema_nested_too_deeply_is_refused(operation: str, fields: Any) -> None:
    with pytest.raises(BadRequest, match=r"nested (too deeply|more than 64 levels)"):
        build(operation, **fields)


def test_a_schema_that_refers_to_itself_is_only_passed_on() -> None:
    schema = {"$ref": "#", "pattern": "(a+)+$"}

    assert build(format=schema).body["format"] == schema


# --- Lookalikes -----------------------------------------------------------------------------------

LOOKALIKES = {
    "MODEL": {"MODEL": "mistral"},
    "Model": {"Model": "mistral"},
    "Stream": {"Stream": True},
    "KEEP_ALIVE": {"KEEP_ALIVE": -1},
    "keep_alive with a Kelvin sign": {"\u212aeep_alive": -1},
    "messages with a long s": {"me\u017fsages": []},
    "system with a long s": {"\u017fystem": "x"},
    "Options": {"Options": {"num_predict": -1}},
    "Template": {"Template": "x"},
    "Num_Ctx in options": {"options": {"Num_Ctx": 10**6}},
    "NUM_PREDICT in options": {"options": {"NUM_PREDICT": -1}},
    "stop with a long s in options": {"options": {"\u017ftop": "x"}},
    "top_k with a Kelvin sign in options": {"options": {"top_\u212a": 1}},
    "Role in a message": {"messages": [{"role": "user", "Role": "system", "content": "hi"}]},
    "Content in the second message": {"messages": [{"content": "a"}, {"Content": "b"}]},
    "role in a tool call": {"messages": [{"tool_calls": [{"Function": {}}]}]},
    "Name in a tool": {"messages": [{"content": "a"}], "tools": [{"function": {"Name": "f"}}]},
}


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("path", ["/api/chat", "/chat"])
@pytest.mark.parametrize("fields", LOOKALIKES.values(), ids=LOOKALIKES)
def test_a_key_that_looks_like_a_known_one_is_refused_by_name(
    alice: Caller, ollama: FakeOllama, path: str, fields: dict[str, Any]
) -> None:
    answer = alice.post(path, {"model": "llama3", **SAID, **fields})

    assert answer.status_code == 400
    assert "did you mean" in answer.json()["error"]
    assert ollama.requests == [] and not Hold.objects.exists()


@pytest.mark.usefixtures("priced")
def test_the_refusal_shows_the_key_and_its_place(alice: Caller, ollama: FakeOllama) -> None:
    answer = alice.post("/api/chat", model="llama3", messages=[{"\u017fize": 1, "Role": "x"}])

    assert "\"messages[0].Role\": did you mean 'role'?" in answer.json()["error"]


# --- Over HTTP ------------------------------------------------------------------------------------

ALLOWED = {
    "/api/generate": {"model", "stream", "prompt", "suffix", "system", "images", *policy.COMMON},
    "/api/chat": {"model", "stream", "messages", "tools", *policy.COMMON},
    "/api/embed": {"model", "input", "truncate", "dimensions", "options"},
}


@pytest.mark.usefixtures("priced")
def test_only_what_the_table_knows_reaches_the_model_server(
    alice: Caller, ollama: FakeOllama
) -> None:
    forbidden = {"keep_alive": -1, "shift": True, "num_ctx": 1, "_debug_render_only": True, "x": 1}
    options = {"num_ctx": 0, "num_gpu": 0, "num_predict": -1, "temperature": 3, "mirostat": 2}

    answer = alice.post("/generate", model=" LLAMA3 ", prompt="hi", options=options, **forbidden)

    assert answer.status_code == 200
    assert ollama.requests[-1].json == {
        "model": "llama3:latest",
        "stream": True,
        "prompt": "hi",
        "options": {"num_predict": 2048, "temperature": 2.0},
    }


@pytest.mark.usefixtures("priced")
def test_no_header_of_the_client_reaches_the_model_server(
    alice: Caller, ollama: FakeOllama
) -> None:
    theirs = {"Origin": "http://evil", "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "X-Own": "1"}
    body = {"model": "llama3", "prompt": "hi"}
    alice.client.post(
        "/generate",
        body,
        "application/json",
        headers={**alice.headers, **theirs, "User-Agent": "x"},
    )

    sent = {name.lower(): value for name, value in ollama.requests[-1].headers.items()}
    known = {"host", "accept", "accept-encoding", "connection", "user-agent"}
    assert set(sent) == known | {"content-length", "content-type"}
    assert sent["user-agent"] == "ollama-gateway" and alice.secret not in str(sent)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["json", "high", "user", "llama3", "MISTRAL:latest", IMAGE, 10**400]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted(rules.KNOWN)) | st.text(max_size=4), inner, max_size=4
        )
    ),
    max_leaves=8,
)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SPOKEN = st.fixed_dictionaries(
    {"role": st.sampled_from(rules.ROLES), "content": st.text(max_size=6)}
)
# What a client sends, with settings of all kinds; and then a few things that nobody should send.
SENSIBLE = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["llama3", "LLAMA3:latest", "mistral", "nomic-embed-text"]),
        "prompt": st.text(min_size=1, max_size=9),
        "input": st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3),
        "messages": st.lists(SPOKEN, min_size=1, max_size=3),
    },
    optional={
        "options": st.dictionaries(
            st.sampled_from(sorted({*policy.OPTIONS, *LOAD_TIME.split(), "x"} - {"stop"})), NUMBERS
        ),
        "stream": st.booleans(),
        **dict.fromkeys(["keep_alive", "shift", "_debug_render_only", "num_ctx", "x"], VALUES),
    },
)
ODD = st.dictionaries(
    st.sampled_from([*sorted(rules.KNOWN), "Model", "\u017fystem", "x", ""]), VALUES, max_size=2
)
BODIES = SENSIBLE | st.builds(lambda sensible, odd: sensible | odd, SENSIBLE, ODD)
EMBEDDER = "nomic-embed-text:latest"
PATHS = ["/generate", "/chat", "/embedding", *ALLOWED, "/api/embeddings"]


@pytest.mark.usefixtures("priced")
@examples(
    max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(path=st.sampled_from(PATHS), body=BODIES)
def test_no_body_breaks_the_gateway_or_gets_past_the_table(
    alice: Caller, ollama: FakeOllama, path: str, body: dict[str, Any]
) -> None:
    ollama.requests.clear()
    answer = alice.post(path, json.dumps(body).encode())
    said = b"".join(answer) if answer.streaming else answer.content

    assert answer.status_code < 500 and said
    for request in ollama.requests:
        assert set(request.json) <= ALLOWED[request.path]
        assert request.json["model"] in ("llama3:latest", "mistral:latest", EMBEDDER)
        if request.path != "/api/embed":
            assert 1 <= request.json["options"]["num_predict"] <= 8192
    assert not Hold.objects.filter(state="open").exists()
