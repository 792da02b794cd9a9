"""Which options go upstream, and how far."""

from typing import Any

import pytest

from gateway.errors import BadRequest
from gateway.validation import policy
from tests.harness.policies import LOAD_TIME, SAID, build

# --- num_predict: always sent, never beyond what is held ------------------------------------------

CAPS = [
    (None, 100),
    (0, 100),
    (-1, 100),
    (-2, 100),
    (-(10**30), 100),
    (-0.5, 100),
    (0.9, 100),
    (1, 1),
    (1.9, 1),
    (499, 499),
    (500, 500),
    (501, 500),
    (1e30, 500),
    (10**4000, 500),
]


@pytest.mark.parametrize("operation", ["generate", "chat"])
@pytest.mark.parametrize(("asked", "sent"), CAPS, ids=[str(asked)[:8] for asked, _ in CAPS])
def test_the_limit_of_an_answer_is_always_sent(operation: str, asked: Any, sent: int) -> None:
    job = build(operation, options={"num_predict": asked})

    assert job.body["options"] == {"num_predict": sent}
    assert job.completion_bound == sent


@pytest.mark.parametrize("options", [None, {}, {"seed": None}])
def test_without_options_the_default_limit_is_sent(options: Any) -> None:
    assert build(prompt="hi", options=options).body["options"] == {"num_predict": 100}


@pytest.mark.parametrize("asked", ["100", "", True, False, [100], {"n": 1}])
def test_a_limit_that_is_no_number_is_refused(asked: Any) -> None:
    with pytest.raises(BadRequest, match=r"options\.num_predict"):
        build(options={"num_predict": asked})


def test_an_embedding_writes_nothing() -> None:
    job = build("embed", input="hi", options={"num_predict": 5})

    assert job.completion_bound == 0
    assert job.body == {"model": "llama3:latest", "input": "hi", "options": {}}


# --- What never goes upstream ---------------------------------------------------------------------

DROPPED = {
    "keep_alive": [-1, 0, "0", "-1", "5m", True, 1e300],
    "shift": [True, False],
    "_debug_render_only": [True],
    "insecure": [True],
    "username": ["x"],
    "password": ["x"],
    "verbose": [True],
    "num_ctx": [0, 10**9],
    "temperature": [1],
    "unknown": [{"a": 1}],
    "adapters": [{"x": "sha256:0"}],
    "remote_host": ["http://10.0.0.1"],
    "format": [None, ""],
    "think": [None],
    "tools": [None],
    "raw": [False, None],
    "template": ["", None],
    "context": [[], None],
    "__proto__": [{}],
}


@pytest.mark.parametrize("operation", ["generate", "chat", "embed"])
@pytest.mark.parametrize(("name", "values"), DROPPED.items(), ids=DROPPED)
def test_what_is_not_the_clients_to_set_is_dropped(
    operation: str, name: str, values: list[Any]
) -> None:
    plain = build(operation).body
    for value in values:
        assert build(operation, **{name: value}).body == plain


GONE = "mirostat tfs_z low_vram numa f16_kv penalize_newline model keep_alive unknown"


@pytest.mark.parametrize("name", [*LOAD_TIME.split(), *GONE.split()])
@pytest.mark.parametrize("value", [0, 10**9, "8k", None])
def test_options_that_reload_a_model_are_dropped(name: str, value: Any) -> None:
    assert build(options={name: value}).body["options"] == {"num_predict": 100}


@pytest.mark.parametrize("name", ["raw", "template", "context"])
@pytest.mark.parametrize("value", [True, "{{ .Prompt }}", [1, 2, 3]], ids=str)
def test_what_steps_around_the_operators_prompt_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=f"'{name}' is not accepted"):
        build(prompt="hi", **{name: value})


def test_fields_of_another_operation_are_dropped() -> None:
    fields = {"prompt": "p", "suffix": "s", "system": "s", "template": "t", "input": "i"}

    assert set(build("chat", **SAID, **fields).body) == {"model", "stream", "messages", "options"}
    assert set(build("embed", **SAID, **fields).body) == {"model", "input"}


# --- Options are clamped --------------------------------------------------------------------------

CLAMPED = [
    ("temperature", -1, 0.0),
    ("temperature", 99, 2.0),
    ("temperature", 0.7, 0.7),
    ("top_k", -5, 0),
    ("top_k", 40.9, 40),
    ("top_k", 10**9, 1000),
    ("top_p", 1.5, 1.0),
    ("min_p", -0.1, 0.0),
    ("typical_p", 2, 1.0),
    ("repeat_last_n", -1, 4096),
    ("repeat_last_n", 0, 0),
    ("repeat_last_n", 10**6, 4096),
    ("repeat_penalty", 11, 10.0),
    ("presence_penalty", -3, -2.0),
    ("frequency_penalty", 3, 2.0),
    ("seed", 2**40, 2**31 - 1),
    ("seed", -1, -1),
    ("stop", "END", ["END"]),
    ("stop", ["a", "b"], ["a", "b"]),
]


@pytest.mark.parametrize(("name", "asked", "sent"), CLAMPED)
def test_an_option_is_clamped_to_its_range(name: str, asked: Any, sent: Any) -> None:
    assert build(options={name: asked}).body["options"][name] == sent


@pytest.mark.parametrize("name", sorted(policy.OPTIONS))
@pytest.mark.parametrize(
    "value", [True, {}, [1], "\x00" * 129], ids=["bool", "object", "list", "text"]
)
def test_an_option_of_a_wrong_type_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=rf"'options\.{name}'"):
        build(options={name: value})


@pytest.mark.parametrize("stop", [["x"] * 9, ["x"] * 1000, ["é" * 65], "x" * 129])
def test_stops_are_few_and_short(stop: Any) -> None:
    with pytest.raises(BadRequest, match=r"options\.stop"):
        build(options={"stop": stop})


def test_eight_stops_of_128_bytes_pass() -> None:
    stops = ["é" * 64] * 8

    assert build(options={"stop": stops}).body["options"]["stop"] == stops
