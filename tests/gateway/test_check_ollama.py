"""`check_ollama` says what is wrong with the model server, and what to do."""

import io
import json
import time
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from billing.models import TokenUsage
from gateway.diagnosis.model_server import is_rendered
from tests.fakes.ollama import FakeOllama
from tests.fakes.script import Stall, reply
from tests.harness.callers import Caller, set_price

pytestmark = [pytest.mark.usefixtures("priced"), pytest.mark.django_db]

MODEL = {"name": "llama3:latest", "model": "llama3:latest", "size": 1, "digest": "abc"}


def check(*options: str) -> tuple[int, str]:
    """Return the exit code and what the command printed."""
    out = io.StringIO()
    try:
        call_command("check_ollama", *options, stdout=out)
    except SystemExit as ended:
        return int(str(ended.code)), out.getvalue()
    return 0, out.getvalue()


def findings(*options: str) -> dict[str, list[dict[str, str]]]:
    """Return the findings by subject."""
    _code, printed = check("--json", *options)
    found: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(printed)["findings"]:
        found.setdefault(finding["subject"], []).append(finding)
    return found


def listed(**more: Any) -> Any:
    return reply({"models": [MODEL | more]})


def test_a_good_server_has_no_errors(ollama: FakeOllama) -> None:
    code, printed = check()

    assert code == 0 and "ok       version: Ollama 0.33.0" in printed
    assert "ok       models: Each of 3 models has a price." in printed
    assert printed.splitlines()[-1].startswith("0 errors")
    assert not TokenUsage.objects.exists()


def test_it_is_json_on_demand(ollama: FakeOllama) -> None:
    code, printed = check("--json")

    found = json.loads(printed)
    assert code == 0 and found["ollama"] == ollama.url
    assert {tuple(each) for each in found["findings"]} == {
        ("state", "subject", "message", "remedy")
    }
    assert {each["state"] for each in found["findings"]} <= {"ok", "warning", "error"}


# --- A server that is away ------------------------------------------------------------------------


def test_a_server_that_is_down_is_an_error_with_a_remedy(ollama: FakeOllama) -> None:
    ollama.down()

    code, printed = check()

    assert code == 1 and f"Nothing accepts connections at {ollama.url}" in printed
    assert "ollama serve" in printed and "OLLAMA_BASE" in printed and "embedded_ollama" in printed


@pytest.mark.parametrize("path", ["/api/version", "/api/tags", "/api/show", "/api/chat"])
def test_a_server_that_hangs_is_given_up(path: str, ollama: FakeOllama) -> None:
    ollama.answer(path, Stall())
    began = time.monotonic()

    code, printed = check("--timeout", "1.5")

    assert time.monotonic() - began < 10
    lost = path in ("/api/version", "/api/tags")
    assert code == (1 if lost else 0)
    assert ("says nothing" if lost else "longer --timeout") in printed


def test_another_server_is_told_from_an_ollama(ollama: FakeOllama) -> None:
    ollama.answer("/api/version", reply("<html>Welcome</html>"))

    code, printed = check()

    assert code == 1 and "does not answer as Ollama does" in printed


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon", "1e9"])
def test_a_timeout_that_cannot_be_is_refused(seconds: str) -> None:
    with pytest.raises(CommandError):
        call_command("check_ollama", f"--timeout={seconds}")


# --- Version --------------------------------------------------------------------------------------

VERSIONS = {
    "0.30.0": "error",
    "0.9.6": "error",
    "0.30.1": "ok",
    "0.32.15": "ok",
    "0.33.0-rc2": "ok",
    "1.0.0": "ok",
    "0.0.0": "warning",
    "0.0.0-embedded": "warning",
    "": "warning",
    "main": "warning",
}


@pytest.mark.parametrize(("said", "state"), VERSIONS.items())
def test_a_version_is_compared_with_the_oldest(said: str, state: str, ollama: FakeOllama) -> None:
    ollama.answer("/api/version", reply({"version": said}))

    [found] = findings("--no-measure")["version"]

    assert found["state"] == state and "0.30.1" in found["message"]


# --- Models and prices ----------------------------------------------------------------------------


def test_models_without_a_price_and_prices_without_a_model_are_named(ollama: FakeOllama) -> None:
    ollama.answer(
        "/api/tags", reply({"models": [MODEL, MODEL | {"name": "x:1b", "model": "x:1b"}]})
    )

    found = findings("--no-measure")

    [model], [price] = found["models"], found["prices"]
    assert model["state"] == "warning" and "x:1b" in model["message"]
    assert "set_price x:1b" in model["remedy"]
    assert "mistral:latest, nomic-embed-text:latest" in price["message"]
    assert "ollama pull mistral:latest" in price["remedy"]


def test_many_names_are_counted(ollama: FakeOllama) -> None:
    for number in range(9):
        set_price(f"m{number}", "1")

    [found] = findings("--no-measure")["prices"]

    assert "m0:latest" in found["message"] and "and 4 more" in found["message"]


def test_no_model_at_all_is_a_warning(ollama: FakeOllama) -> None:
    ollama.answer("/api/tags", reply({"models": []}))

    found = findings()

    assert found["models"][0]["state"] == "warning" and "pull" in found["models"][0]["remedy"]
    assert found["prompts"][0]["state"] == "ok"


# --- Templates and contexts -----------------------------------------------------------------------

GO = [
    "{{ .Prompt }}",
    "{{- range .Messages }}x{{ end }}",
    '{{ if eq .Role "user" }}',
    "{{- range $i, $_ := .Messages }}{{ $.System }}{{ end }}",
]
JINJA = [
    "{% for message in messages %}{{ message.role }}{% endfor %}",
    "{{ bos_token }}{{ messages[0].Content }}",
    "",
]


@pytest.mark.parametrize("template", GO)
def test_a_template_in_go_is_rendered(template: str) -> None:
    assert is_rendered({"template": template})


@pytest.mark.parametrize("template", JINJA)
def test_any_other_is_native(template: str) -> None:
    assert not is_rendered({"template": template, "modelfile": "FROM x\nTEMPLATE {{ x }}"})


def test_a_renderer_of_ollamas_own_counts_as_rendered() -> None:
    assert is_rendered({"template": "{{ x }}", "modelfile": "FROM x\nRENDERER qwen3-coder\n"})


def test_the_templates_are_told_by_kind(ollama: FakeOllama) -> None:
    shown = {"template": "{% if x %}", "details": {}}
    ollama.answer("/api/show", reply(shown), times=1)

    [found] = findings("--no-measure")["templates"]

    assert (
        "rendered by Ollama: " in found["message"] and "native (llama-server): " in found["message"]
    )


@pytest.mark.parametrize(("tokens_read", "state"), [(4096, "warning"), (32768, "ok")])
def test_the_context_in_force_is_told(tokens_read: int, state: str, ollama: FakeOllama) -> None:
    ollama.answer("/api/tags", listed(details={"context_length": 131072}))
    ollama.answer("/api/ps", listed(context_length=tokens_read))

    [found] = findings("--no-measure")["context"]

    assert found["state"] == state and f"{tokens_read:,} tokens of the 131,072" in found["message"]
    assert ("OLLAMA_CONTEXT_LENGTH" in found["remedy"]) == (state == "warning")


# --- Others ---------------------------------------------------------------------------------------


def test_a_model_that_nobody_asked_us_for_tells_of_another_client(
    alice: Caller, ollama: FakeOllama
) -> None:
    ollama.answer("/api/ps", listed(expires_at="2026-01-01T00:05:00Z"))
    [before] = findings("--no-measure")["other clients"]
    alice.post("/generate", model="llama3", prompt="hi")
    [after] = findings("--no-measure")["other clients"]

    assert before["state"] == "warning" and "llama3:latest" in before["message"]
    assert "not billed" in before["remedy"]
    assert after["state"] == "ok"


def test_a_model_that_always_stays_tells_nothing(ollama: FakeOllama) -> None:
    ollama.answer("/api/ps", listed(expires_at="2318-01-01T00:00:00Z"))

    assert findings("--no-measure")["other clients"][0]["state"] == "ok"


# --- Prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "said"),
    [(True, "kept apart"), (None, "kept apart"), (False, "share a prompt cache")],
)
def test_a_prompt_cache_is_seen(
    setting: bool | None, said: str, settings: Any, ollama: FakeOllama
) -> None:
    settings.ISOLATE_PROMPTS = setting

    [found] = findings()["prompts"]

    assert found["state"] == "ok" and said in found["message"]
    texts = [asked.json["messages"][0]["content"] for asked in ollama.calls("/api/chat")][1:]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].split() == texts[2].split() and len(texts[0].split()) > 100


def read_in(*milliseconds: int) -> Any:
    """Answer each request as if its prompt had been read in so long."""
    left = list(milliseconds)

    def script(_received: Any) -> Any:
        took = left.pop(0) * 1_000_000
        return reply({"message": {}, "done": True, "prompt_eval_duration": took})

    return script


def test_no_prompt_cache_is_seen_where_there_is_none(ollama: FakeOllama) -> None:
    ollama.answer("/api/chat", read_in(9, 100, 98, 101))

    assert "No prompt cache" in findings()["prompts"][0]["message"]


def test_a_salt_that_does_not_work_is_an_error(ollama: FakeOllama) -> None:
    ollama.answer("/api/chat", read_in(9, 100, 1, 2))

    code, printed = check()

    assert code == 1 and "Salts do not keep accounts apart" in printed
    assert "LLAMA_ARG_CACHE_RAM=0" in printed


def test_without_measuring_no_model_is_asked(ollama: FakeOllama) -> None:
    check("--no-measure")

    assert not any(
        asked.method == "POST" and asked.path != "/api/show" for asked in ollama.requests
    )


@pytest.mark.parametrize("loaded", [True, False])
def test_a_model_that_was_not_in_memory_leaves_it_again(loaded: bool, ollama: FakeOllama) -> None:
    ollama.answer("/api/tags", listed())
    ollama.answer("/api/ps", listed() if loaded else reply({"models": []}))

    check()

    unloads = [asked.json for asked in ollama.calls("/api/generate")]
    assert unloads == ([] if loaded else [{"model": "llama3:latest", "keep_alive": 0}])


def test_embedding_models_are_not_asked_to_write(ollama: FakeOllama) -> None:
    bert = MODEL | {"name": "e", "model": "e", "size": 0, "details": {"family": "nomic-bert"}}
    able = MODEL | {"name": "f", "model": "f", "size": 0, "capabilities": ["embedding"]}
    ollama.answer("/api/tags", reply({"models": [bert, able, MODEL]}))

    check()

    assert {asked.json["model"] for asked in ollama.calls("/api/chat")} == {"llama3:latest"}
