"""Web pages of allowed origins call the API from a real browser. None reaches the back-office."""

import json
import re
from typing import Any

import pytest
import requests

from billing.models import TokenUsage
from gateway.http import origins
from tests.harness.browser import CHROMIUM, result_of
from tests.harness.callers import Caller
from tests.harness.gateway import RunningGateway, eventually

pytestmark = [
    pytest.mark.usefixtures("priced"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

FOREIGN = "page.example"
ASK = """
const request = {method: "POST", headers: HEADERS, body: JSON.stringify(BODY)};
const answer = await fetch(URL + PATH, request);
return {
  status: answer.status,
  id: answer.headers.get("x-request-id"),
  text: await answer.text(),
};
"""


def ask(
    gateway: RunningGateway, path: str, headers: dict[str, str], body: Any, host: str = "localhost"
) -> Any:
    values = {"URL": gateway.server.url, "PATH": path, "HEADERS": headers, "BODY": body}
    constants = "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
    return result_of(constants + ASK, host)


def bodies(stream: bool) -> dict[str, dict[str, Any]]:
    chat = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    return {
        "/v1/chat/completions": chat,
        "/api/chat": chat,
        "/v1/messages": {**chat, "max_tokens": 20},
        "/chat": chat,
    }


@pytest.mark.parametrize("path", bodies(stream=True))
def test_a_page_on_another_port_of_this_machine_streams_a_response(
    gateway: RunningGateway, alice: Caller, path: str
) -> None:
    headers = {**alice.headers, "content-type": "application/json", "anthropic-version": "1"}

    answer = ask(gateway, path, headers, bodies(stream=True)[path])

    assert answer["status"] == 200 and "llama3" in answer["text"], answer
    eventually(TokenUsage.objects.exists)
    assert answer["id"] == str(TokenUsage.objects.get().request_id)


def test_a_page_reads_errors(gateway: RunningGateway) -> None:
    headers = {"x-api-key": "wrong", "content-type": "application/json"}

    answer = ask(gateway, "/v1/messages", headers, {})

    assert answer["status"] == 401 and "Invalid API key" in answer["text"]


def test_a_page_of_an_origin_that_is_not_allowed_gets_nothing(
    gateway: RunningGateway, alice: Caller
) -> None:
    headers = {**alice.headers, "content-type": "application/json"}

    answer = ask(gateway, "/api/chat", headers, bodies(stream=False)["/api/chat"], FOREIGN)

    assert answer == {"error": "TypeError: Failed to fetch"}
    assert not TokenUsage.objects.exists()


def test_no_page_reads_the_back_office(gateway: RunningGateway) -> None:
    script = f"return (await fetch({json.dumps(gateway.server.url)} + '/admin/login/')).status;"

    assert result_of(script) == {"error": "TypeError: Failed to fetch"}


# --- Headers --------------------------------------------------------------------------------------

PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, x-stainless-os",
}


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "https://127.0.0.1", "app://obsidian.md", "tauri://localhost"],
)
def test_a_preflight_needs_no_key(gateway: RunningGateway, origin: str) -> None:
    url = f"{gateway.server.url}/v1/chat/completions"

    answer = requests.options(url, headers={"Origin": origin, **PREFLIGHT}, timeout=10)

    assert answer.status_code == 200 and answer.headers["x-request-id"]
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "origin" in answer.headers["Vary"].lower()


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost.page.example",
        "http://page.example",
        "https://127.0.0.1.page.example:80",
        "http://localhost:3000/x",
        "null",
        "",
    ],
)
def test_a_preflight_of_an_origin_that_is_not_allowed_permits_nothing(
    gateway: RunningGateway, origin: str
) -> None:
    url = f"{gateway.server.url}/v1/chat/completions"

    answer = requests.options(url, headers={"Origin": origin, **PREFLIGHT}, timeout=10)

    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin/login/", "/portal/", "/static/x"])
def test_pages_with_a_session_take_no_part(gateway: RunningGateway, path: str) -> None:
    headers = {"Origin": "http://localhost:3000", **PREFLIGHT}

    for method in ("OPTIONS", "GET"):
        answer = requests.request(
            method, gateway.server.url + path, headers=headers, timeout=10, allow_redirects=False
        )
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("pattern", "origin", "allowed"),
    [
        ("https://chat.example.com", "https://chat.example.com", True),
        ("https://chat.example.com", "https://chat.example.com.evil.example", False),
        ("https://chat.example.com", "https://chatXexample.com", False),
        ("https://*.example.com", "https://a.b.example.com", True),
        ("https://*.example.com", "https://evil.example/.example.com", False),
        ("HTTPS://Chat.example.com", "https://chat.example.com", True),
    ],
)
def test_a_star_stands_for_a_part_of_a_name(pattern: str, origin: str, allowed: bool) -> None:
    assert bool(re.match(origins.pattern(pattern), origin)) is allowed
