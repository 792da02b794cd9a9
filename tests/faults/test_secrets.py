"""Planted canaries: no key, secret, prompt or response appears where it does not belong.

A run provokes every known kind of error. The logs of gunicorn and nginx, the error bodies, and the
pages of the admin and the API are searched for what only the caller may know.
"""

import contextlib
import re
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from accounts.models import ApiKey
from tests.fakes.script import Line, Raw, Reset, Stall, Status, error_line, reply, tokens
from tests.faults.conftest import RunningGateway, ask, books_balance, started, ways
from tests.harness.callers import Caller, new_caller, set_price
from tests.servers.client import BROKEN
from tests.servers.gunicorn import Gunicorn

GENERATE = "/api/generate"
SECRET_KEY = "canary-secret-key-" + secrets.token_hex(24)
PROMPT = "canary-prompt-" + secrets.token_hex(8)
ANSWER = "canary-answer-" + secrets.token_hex(8)
PASSWORD = "canary-password-" + secrets.token_hex(8)
# A bug in the middle of a view, with every value in reach that a traceback could show.
BROKEN_URL = "postgres://canary:" + PASSWORD + "@127.0.0.1:9/nowhere"


@pytest.fixture(scope="module", params=ways())
def running(
    request: Any, django_db_setup: None, django_db_blocker: Any
) -> Iterator[RunningGateway]:
    with started(behind_nginx=request.param, SECRET_KEY=SECRET_KEY) as gateway:
        yield gateway


@pytest.fixture
def alice(gateway: RunningGateway) -> Caller:
    set_price("llama3", "0.002", "0.004")
    return new_caller("Alice")


FAULTS: dict[str, list[Any]] = {
    "500 that repeats the prompt": reply({"error": f"cannot render {PROMPT}"}, 500),
    "400 that repeats the prompt": reply({"error": f"invalid prompt {PROMPT}"}, 400),
    "503 that repeats the prompt": reply({"error": f"busy with {PROMPT}"}, 503),
    "a redirect": [Status(307, {"Location": f"http://127.0.0.1:1/?{PROMPT}"})],
    "an error line": [tokens([ANSWER], done=False), error_line(f"lost {PROMPT} {ANSWER}")],
    "not JSON": [tokens([ANSWER], done=False), Line(f"<b>{ANSWER}</b>".encode())],
    "not an object": [Line(f'["{ANSWER}"]'.encode())],
    "counts that are text": tokens([ANSWER], prompt=ANSWER, count=ANSWER),
    "types that are wrong": [Line({"response": {"x": ANSWER}, "done": "x"}), Reset()],
    "half a line": [Raw(f'{{"response": "{ANSWER}'.encode())],
    "silence": [tokens([ANSWER], done=False), Stall()],
}

BODIES = {
    "not JSON": f'{{"model": "llama3", "prompt": "{PROMPT}',
    "a key twice": f'{{"model": "llama3", "prompt": "{PROMPT}", "prompt": "{PROMPT}"}}',
    "a lookalike key": f'{{"model": "llama3", "prompt": "x", "PROMPT": "{PROMPT}"}}',
    "a wrong type": f'{{"model": "llama3", "prompt": ["{PROMPT}"]}}',
    "a wrong image": f'{{"model": "llama3", "prompt": "x", "images": ["{PROMPT}"]}}',
    "a wrong role": f'{{"model": "llama3", "messages": [{{"role": "x", "content": "{PROMPT}"}}]}}',
    "wrong options": f'{{"model": "llama3", "prompt": "{PROMPT}", "options": {{"seed": "x"}}}}',
    "an unknown model": f'{{"model": "nobody", "prompt": "{PROMPT}"}}',
}


def provoke(gateway: RunningGateway, caller: Caller) -> list[bytes]:
    """Provoke every fault; return the bodies of the errors."""
    found = []
    for fault in FAULTS.values():
        gateway.ollama.answer(GENERATE, fault)
        for stream in (True, False):
            seen = ask(gateway, caller.secret, stream=stream, prompt=PROMPT)
            # Text that was delivered before an error belongs to the caller.
            if not (seen.looks_complete or seen.status == 200 and not stream):
                found.append(seen.lines[-1])
    for path in (GENERATE, "/chat", "/v1/chat/completions", "/v1/messages", "/api/embed"):
        found += [refused(gateway, path, body, caller.secret) for body in BODIES.values()]
    for header in (caller.secret[:-1], f"{caller.secret}, x", f"x{caller.secret}", '" OR 1=1'):
        found.append(refused(gateway, GENERATE, BODIES["an unknown model"], header))
    found.append(refused(gateway, f"/usage/history?from={caller.secret}", "", caller.secret))
    found.append(refused(gateway, f"/nowhere?key={caller.secret}&prompt={PROMPT}", "", "x"))
    gateway.proxy.down()
    found.append(ask(gateway, caller.secret, prompt=PROMPT).body)
    gateway.proxy.up()
    return found


def refused(gateway: RunningGateway, path: str, body: str, key: str) -> bytes:
    with gateway.client() as client:
        client.request("POST" if body else "GET", path, body.encode(), key=key)
        status = client.read_head().status
        # Some families do not know the field and ignore it.
        assert status < 500, (path, body, status)
        answer = client.read_all()
        return answer if status >= 400 else b""


def leaks(text: str, caller: Caller, *more: str) -> list[str]:
    """Return the names, not the values, of the canaries in a text."""
    canaries = {
        "key": caller.secret,
        "half of the key": caller.secret[6:40],
        "digest": str(caller.key.digest),
        "SECRET_KEY": SECRET_KEY,
        "database password": PASSWORD,
        "prompt": PROMPT,
        "answer": ANSWER,
    } | {word: word for word in more}
    return [name for name, value in canaries.items() if value in text]


def test_no_error_and_no_log_contains_a_secret(gateway: RunningGateway, alice: Caller) -> None:
    bodies = provoke(gateway, alice)

    assert len(bodies) > 50
    for body in bodies:
        assert not leaks(body.decode(), alice, "/work", "/srv", "Traceback", ".py"), body
    logs = gateway.server.log() + (gateway.nginx.log() if gateway.nginx else "")
    assert "POST /api/generate" in logs, "nothing was logged, so nothing was proved"
    assert not leaks(logs, alice)


def test_no_page_of_the_back_office_shows_a_secret(
    gateway: RunningGateway, alice: Caller, settings: Any
) -> None:
    settings.SECRET_KEY = SECRET_KEY  # The gateway's; the pages are made in this process.
    gateway.ollama.answer(GENERATE, tokens([ANSWER]))
    ask(gateway, alice.secret, prompt=PROMPT)
    User.objects.create_superuser("olga", password=PASSWORD)
    browser = Client(raise_request_exception=False)
    browser.force_login(User.objects.get(username="olga"))

    pages = ["/admin/"]
    seen: set[str] = set()
    while pages and len(seen) < 80:
        page = pages.pop()
        seen.add(page)
        answer = browser.get(page)
        assert answer.status_code < 500, page
        html = b"" if answer.streaming else answer.content
        assert not leaks(html.decode(errors="replace"), alice), page
        links = re.findall(rb'href="(/admin/[^"?#]*)"', html)
        pages += [link for each in links if (link := each.decode()) not in seen | {*pages}]
    assert len(seen) > 20 and any("usage" in page for page in seen)


def test_no_row_of_the_database_holds_a_secret_or_a_prompt(
    gateway: RunningGateway, alice: Caller
) -> None:
    """Every value of every table, as a dump would show it, after faults and good responses."""
    provoke(gateway, alice)
    gateway.ollama.answer(GENERATE, tokens([ANSWER]))
    assert ask(gateway, alice.secret, prompt=PROMPT).looks_complete
    books_balance()

    tables = everything_written()

    assert len(tables["token_usages"]) > 10 and len(tables) > 10
    for name, rows in tables.items():
        found = leaks("\n".join(rows), alice)
        # The table of keys contains digests, by which keys are found.
        assert found in ([], ["digest"] if name == ApiKey._meta.db_table else []), (name, found)


def everything_written() -> dict[str, list[str]]:
    tables = {}
    with connection.cursor() as cursor:
        for name in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(name)}")
            tables[name] = [repr(row) for row in cursor.fetchall()]
    return tables


@pytest.mark.parametrize("path", ["/usage", "/usage/history", "/models", "/healthz", "/readyz"])
def test_no_response_of_the_api_contains_a_secret(
    gateway: RunningGateway, alice: Caller, path: str
) -> None:
    gateway.ollama.answer(GENERATE, tokens([ANSWER]))
    ask(gateway, alice.secret, prompt=PROMPT)

    with gateway.client() as client:
        client.get(path, key=alice.secret)
        client.read_head()
        assert not leaks(client.read_all().decode(), alice, "/work")


# A bug at every sensitive point: each exception's message contains all that is in reach.
BUGS = """
from config.wsgi import application
import billing.ledger, gateway.validation.policy, gateway.relay.metered_chunks
def bug(*args, **kwargs):
    open({fired!r}, "a").write("fired")
    raise {error}
assert callable({place})
{place} = bug
"""
PLACES = [
    "gateway.validation.policy.build",
    "billing.ledger.hold",
    "billing.ledger.settle",
    "gateway.relay.metered_chunks.MeteredChunks.take",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["RuntimeError('a bug')", "OperationalError('no database')"])
def test_a_traceback_contains_lines_of_code_and_no_values(
    gateway: RunningGateway, alice: Caller, place: str, kind: str, tmp_path: Any
) -> None:
    if gateway.nginx:
        pytest.skip("nginx has no part in it")
    error = f"__import__('django.db', fromlist=['x']).{kind}" if "Operational" in kind else kind
    fired = tmp_path / "fired"
    bug = BUGS.format(error=error, place=place, fired=str(fired))
    (tmp_path / "buggy.py").write_text(bug)
    gateway.ollama.answer(GENERATE, tokens([ANSWER]))

    with buggy(gateway, tmp_path) as broken:
        seen = ask(broken, alice.secret, prompt=PROMPT)
        log = broken.server.log()

    assert fired.exists(), "the bug was never met, so nothing was proved"
    last = seen.lines[-1].decode()
    assert not leaks(last, alice, "a bug", "no database", "Traceback") or seen.looks_complete
    assert not leaks(log, alice)


@contextlib.contextmanager
def buggy(gateway: RunningGateway, folder: Any) -> Iterator[RunningGateway]:
    env = gateway.env | {"PYTHONPATH": str(folder), "GATEWAY_WORKERS": "1"}
    with Gunicorn(env, app="buggy") as server:
        yield RunningGateway(server, gateway.ollama, gateway.proxy, env, server.url)


def test_an_unreachable_database_does_not_reveal_its_password(
    gateway: RunningGateway, alice: Caller
) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no password")
    env = gateway.env | {"DATABASE_URL": BROKEN_URL, "GATEWAY_WORKERS": "1"}
    with Gunicorn(env) as server, contextlib.suppress(*BROKEN):
        gone = RunningGateway(server, gateway.ollama, gateway.proxy, env, server.url)
        seen = ask(gone, alice.secret, prompt=PROMPT)
        assert seen.status == 503 and not leaks(seen.body.decode(), alice, "127.0.0.1")
        assert not leaks(server.log(), alice)
