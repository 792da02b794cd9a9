"""Prompts of different accounts share no beginning: where the salt stands, and whose it is."""

import math
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import call_command
from django.test import Client

from accounts.models import Account
from config import run
from gateway import checks
from gateway.metering import Operation
from gateway.validation import isolation, policy
from gateway.validation.inference_request import InferenceRequest
from gateway.validation.isolation import BLANKS, FIRST, LENGTH, salt_of
from gateway.views.inference import limits
from tests.billing.test_idempotency import ROUTES
from tests.fakes.ollama import FakeOllama
from tests.harness.callers import Caller

pytestmark = [pytest.mark.usefixtures("priced"), pytest.mark.django_db]

WRITING = [path for path in ROUTES if "embed" not in path]
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "hello"}


@pytest.fixture(autouse=True)
def isolated(settings: Any) -> None:
    settings.ISOLATE_PROMPTS = True


def salt(caller: Caller) -> str:
    return salt_of(caller.account.pk, django_settings.SECRET_KEY)


def sent(ollama: FakeOllama) -> dict[str, Any]:
    """Return what the model server was asked last."""
    body: dict[str, Any] = ollama.requests[-1].json
    return body


def read(response: Any) -> Any:
    assert response.status_code == 200, response.content
    return b"".join(response) if response.streaming else response.content


def first_text(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"] if "messages" in body else body["prompt"])


# --- Where it stands ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", WRITING)
def test_on_every_route_the_first_text_begins_with_the_salt(
    path: str, stream: bool, alice: Caller, ollama: FakeOllama
) -> None:
    read(alice.post(path, **ROUTES[path], stream=stream))

    assert first_text(sent(ollama)) == salt(alice) + "hello"


@pytest.mark.parametrize("path", [path for path in ROUTES if "embed" in path])
def test_texts_to_embed_stay_as_they_are(path: str, alice: Caller, ollama: FakeOllama) -> None:
    read(alice.post(path, **ROUTES[path]))

    assert sent(ollama)["input"] in ("hello", ["hello"])


SYSTEM_PROMPTS: dict[str, dict[str, Any]] = {
    "/chat": {"messages": [SYSTEM, USER]},
    "/v1/chat/completions": {"messages": [{**SYSTEM, "role": "developer"}, USER]},
    "/v1/responses": {"instructions": "Be brief.", "input": "hello"},
    "/v1/messages": {"system": "Be brief.", "messages": [USER], "max_tokens": 9},
}


@pytest.mark.parametrize("path", SYSTEM_PROMPTS)
def test_a_system_message_is_salted_and_the_first_other_one_too(
    path: str, alice: Caller, ollama: FakeOllama
) -> None:
    """Mistral's template writes the system message before the last message, not the first."""
    read(alice.post(path, model="llama3", **SYSTEM_PROMPTS[path]))

    contents = [message["content"] for message in sent(ollama)["messages"]]
    assert contents == [salt(alice) + "Be brief.", salt(alice) + "hello"]


def test_a_generation_has_the_salt_in_its_system_prompt_too(
    alice: Caller, ollama: FakeOllama
) -> None:
    read(alice.post("/api/generate", model="llama3", prompt="hello", system="Be brief."))

    assert sent(ollama)["system"] == salt(alice) + "Be brief."
    assert sent(ollama)["prompt"] == salt(alice) + "hello"


def test_later_messages_stay_as_they_are(alice: Caller, ollama: FakeOllama) -> None:
    later = [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "why?"}, SYSTEM]
    read(alice.post("/chat", model="llama3", messages=[USER, *later]))

    first, *others, system = sent(ollama)["messages"]
    assert others == later[:2]
    assert first["content"] == salt(alice) + "hello"
    assert system["content"] == salt(alice) + "Be brief."


def test_a_message_without_text_is_passed_over(alice: Caller, ollama: FakeOllama) -> None:
    """Trimmed, a salt alone would be the same full stop for everybody."""
    empty = {"role": "user", "content": " \n"}
    read(alice.post("/chat", model="llama3", messages=[empty, USER]))

    assert [m["content"] for m in sent(ollama)["messages"]] == [" \n", salt(alice) + "hello"]


def test_the_first_tool_is_salted_for_templates_that_begin_with_tools(
    alice: Caller, ollama: FakeOllama
) -> None:
    tools: list[Any] = [
        {"type": "function", "function": {"name": name, "description": name, "parameters": {}}}
        for name in ("first", "second")
    ]
    del tools[0]["function"]["description"]
    read(alice.post("/chat", model="llama3", messages=[USER], tools=tools))

    functions = [tool["function"] for tool in sent(ollama)["tools"]]
    assert [each["description"] for each in functions] == [salt(alice), "second"]


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/generate", {"prompt": "", "system": "x"}), ("/api/chat", {"messages": []})],
)
def test_a_request_that_only_loads_a_model_asks_for_nothing_more(
    path: str, body: dict[str, Any], alice: Caller, ollama: FakeOllama
) -> None:
    assert b'"load"' in read(alice.post(path, model="llama3", **body))
    operation = Operation.CHAT if "messages" in body else Operation.GENERATE
    job = policy.build(InferenceRequest(operation, "m", False, body), "m", limits(), salt(alice))
    assert {name: job.body[name] for name in body} == body


# --- Whose it is ----------------------------------------------------------------------------------


def test_an_account_has_one_salt_and_others_have_others(
    alice: Caller, bob: Caller, charlie: Caller, ollama: FakeOllama
) -> None:
    texts = []
    for caller in (alice, alice, bob, charlie):
        read(caller.post("/chat", model="llama3", messages=[USER]))
        texts.append(first_text(sent(ollama)))

    assert texts[0] == texts[1] == texts[2] != texts[3]


def test_nothing_a_client_writes_makes_its_salt_that_of_another(
    alice: Caller, charlie: Caller, ollama: FakeOllama
) -> None:
    """The guess begins with Alice's salt, or with what is missing to it."""
    theirs, ours = salt(alice), salt(charlie)
    for guess in (theirs, theirs[1:], theirs[-1:], "", "\x7f" * 20, "\b" * 20):
        read(charlie.post("/chat", model="llama3", messages=[{**USER, "content": guess + "x"}]))
        assert first_text(sent(ollama)).startswith(ours)
    assert len(theirs) == len(ours) == 1 + LENGTH and theirs != ours


def test_salts_are_of_twenty_bits_and_one_length() -> None:
    secret = "a secret of this test alone, since salts follow from it"
    salts = [salt_of(number, secret) for number in range(300)]

    assert math.log2(len(BLANKS) ** LENGTH) >= 20
    assert len(set(salts)) == 300 and {len(each) for each in salts} == {1 + LENGTH}
    assert salt_of(1, secret) != salt_of(1, "another secret")


def test_a_salt_survives_a_template_that_trims() -> None:
    found = salt_of(1, "secret")
    assert FIRST.strip() and (found + "hello").strip().startswith(found)
    assert found[1:].isspace() and found.isascii()


# --- Who decides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "flag", "isolated"),
    [
        (True, None, True),
        (False, None, False),
        (None, None, True),
        (True, False, False),
        (False, True, True),
    ],
)
def test_the_setting_decides_and_an_account_may_differ(
    setting: bool | None,
    flag: bool | None,
    isolated: bool,
    settings: Any,
    alice: Caller,
    ollama: FakeOllama,
) -> None:
    settings.ISOLATE_PROMPTS = setting
    Account.objects.update(isolate_prompts=flag)

    read(alice.post("/chat", model="llama3", messages=[USER]))

    assert first_text(sent(ollama)) == (salt(alice) if isolated else "") + "hello"


def test_the_hold_covers_the_salt(alice: Caller) -> None:
    prompt = InferenceRequest(Operation.CHAT, "m", False, {"messages": [SYSTEM, USER]})
    plain, salted = (policy.build(prompt, "m", limits(), each) for each in ("", salt(alice)))

    assert salted.prompt_bound - plain.prompt_bound >= 2 * len(salt(alice))
    assert salted.prompt_estimate > plain.prompt_estimate


def test_a_prompt_of_the_largest_size_is_still_accepted(
    settings: Any, alice: Caller, ollama: FakeOllama
) -> None:
    settings.MAX_PROMPT_BYTES = 100
    read(alice.post("/generate", model="llama3", prompt="x" * 100))

    assert len(first_text(sent(ollama))) == 100 + len(salt(alice))


def test_the_deploy_check_asks_for_a_decision(settings: Any) -> None:
    assert checks.check_isolation() == []
    settings.ISOLATE_PROMPTS = None

    [warning] = checks.check_isolation()

    assert warning.id == "gateway.W001" and not warning.is_serious()
    assert warning.hint and "`on`" in warning.hint and "`off`" in warning.hint


def test_make_run_writes_the_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ENV_FILE", tmp_path / ".env")

    run.write_env()

    assert "ISOLATE_PROMPTS=off" in (tmp_path / ".env").read_text().splitlines()


@pytest.mark.parametrize(("option", "flag"), [("on", True), ("off", False), (None, None)])
def test_create_account_sets_the_flag(option: str | None, flag: bool | None) -> None:
    call_command("create_account", "New", *([f"--isolate-prompts={option}"] if option else []))

    assert Account.objects.get(name="New").isolate_prompts is flag


def test_an_operator_sets_the_flag_on_the_page_of_an_account(
    admin_client: Client, alice: Caller
) -> None:
    page = f"/admin/accounts/account/{alice.account.pk}/change/"
    assert b"As the setting ISOLATE_PROMPTS" in admin_client.get(page).content
    member = alice.account.memberships.get()
    formset = {
        "memberships-TOTAL_FORMS": 1,
        "memberships-INITIAL_FORMS": 1,
        "memberships-0-id": member.pk,
        "memberships-0-account": alice.account.pk,
        "memberships-0-user": member.user_id,
        "memberships-0-role": "owner",
    }
    data = {"name": alice.account.name, "status": "active", "isolate_prompts": "False", **formset}

    response = admin_client.post(page, data)

    assert response.status_code == 302, response.content
    assert Account.objects.get(pk=alice.account.pk).isolate_prompts is False


def test_isolation_knows_every_field_that_a_template_may_write_first() -> None:
    """A new field of text in the table needs a decision here too."""
    text_fields = set(policy.TABLE[Operation.GENERATE]) | set(policy.TABLE[Operation.CHAT])
    decided = {"prompt", "system", "messages", "tools"}
    # The suffix of a fill-in is written after its gap: a salt there would be part of the text.
    not_salted = {"suffix", "images", "raw", "template", "context", *policy.COMMON}

    assert text_fields == decided | not_salted
    assert isolation.isolate({"input": "x"}, Operation.EMBED, "s") == 0
