"""Login attempts to the admin are limited, without locking out other users."""

import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import requests
from django.contrib.auth.hashers import MD5PasswordHasher
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone

from accounts import login_guard
from accounts.models import LoginCount
from tests.fakes.ollama import FakeOllama
from tests.harness.gateway import gateway_env
from tests.servers.gunicorn import Gunicorn

LOGIN = "/admin/login/"
PASSWORD = "the operator's very own"
WAIT = "Too many attempts. Wait"
FREE = login_guard.FREE


@pytest.fixture(autouse=True)
def operators(db: None) -> None:
    for name in ("olga", "otto"):
        User.objects.create_superuser(name, password=PASSWORD)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every password that was checked."""
    seen: list[str] = []
    encode = MD5PasswordHasher.encode

    def note(self: Any, password: str, salt: str) -> Any:
        seen.append(password)
        return encode(self, password, salt)

    monkeypatch.setattr(MD5PasswordHasher, "encode", note)
    return seen


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stop the clock; the fixture moves it forward."""
    at = [timezone.now()]
    monkeypatch.setattr(timezone, "now", lambda: at[-1])

    def move(**span: float) -> None:
        at.append(at[-1] + timedelta(**span))

    return move


def log_in(name: str, password: str = PASSWORD, address: str = "10.0.0.1", **more: Any) -> Any:
    fields = {"username": name, "password": password, "next": "/admin/"}
    return Client(REMOTE_ADDR=address, **more).post(LOGIN, fields)


def guess(name: str, times: int, address: str = "10.0.0.{}", **more: Any) -> list[str]:
    """Return the pages after wrong passwords, each from another address."""
    responses = [log_in(name, f"wrong {n}", address.format(n), **more) for n in range(times)]
    return [response.content.decode() for response in responses]


def is_in(response: Any) -> bool:
    return bool(response.status_code == 302 and response["Location"] == "/admin/")


# --- Guessing passwords ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "times"), [("olga", 100), ("nobody", 20)])
def test_of_a_hundred_guesses_only_a_few_are_checked(
    hashed: list[str], name: str, times: int
) -> None:
    pages = guess(name, times, address="10.0.0.1")

    assert len(hashed) == FREE + 1
    assert [WAIT in page for page in pages] == [n > FREE for n in range(times)]


def test_the_right_password_is_not_checked_during_a_wait(
    hashed: list[str],
) -> None:
    guess("olga", FREE + 1, address="10.0.0.1")
    response = log_in("olga")

    assert WAIT in response.content.decode() and PASSWORD not in hashed


def test_forged_forwarding_headers_do_not_reset_the_count(hashed: list[str]) -> None:
    for number in range(20):
        forged = {"X-Forwarded-For": f"10.1.1.{number}", "Forwarded": f"for=10.1.1.{number}"}
        log_in("olga", "wrong", headers=forged)

    assert len(hashed) == FREE + 1


def test_guesses_from_many_addresses_have_a_higher_limit(hashed: list[str]) -> None:
    guess("olga", login_guard.FREE_FROM_ANYWHERE + 10)

    assert len(hashed) == login_guard.FREE_FROM_ANYWHERE + 1


def test_an_address_is_limited_over_all_usernames(hashed: list[str]) -> None:
    for number in range(login_guard.FREE_OF_ADDRESS + 20):
        log_in(f"name {number}", "wrong")

    assert len(hashed) == login_guard.FREE_OF_ADDRESS + 1
    assert is_in(log_in("olga", address="10.9.9.9"))


def test_a_known_user_does_not_wait_for_others_at_the_address() -> None:
    assert is_in(log_in("olga"))
    for number in range(login_guard.FREE_OF_ADDRESS + 5):
        log_in(f"name {number}", "wrong")

    assert is_in(log_in("olga"))
    assert WAIT in log_in("otto").content.decode()


def test_behind_a_proxy_its_last_forwarded_address_counts(settings: Any, hashed: list[str]) -> None:
    settings.BEHIND_TLS_PROXY = True
    for number in range(20):
        log_in("olga", "wrong", headers={"X-Forwarded-For": f"6.6.6.{number}, 203.0.113.9"})
    assert len(hashed) == FREE + 1

    assert is_in(log_in("olga", headers={"X-Forwarded-For": "203.0.113.10"}))
    assert WAIT in log_in("olga", headers={"X-Forwarded-For": "203.0.113.9"}).content.decode()


def test_known_and_unknown_usernames_get_the_same_page() -> None:
    olga, nobody = guess("olga", FREE + 2, "10.0.0.1"), guess("nobody", FREE + 2, "10.0.0.1")

    same = [re.sub(r'value="[^"]*"|\d+ seconds', "", page) for page in olga]
    assert same == [re.sub(r'value="[^"]*"|\d+ seconds', "", page) for page in nobody]


def test_another_spelling_of_a_username_is_counted_together(hashed: list[str]) -> None:
    for name in ("olga", "\uff4flga", " olga", "olga ") * 10:
        log_in(name, "wrong")

    assert len(hashed) == FREE + 1


# --- Logging in despite other attempts ------------------------------------------------------------


def test_another_operator_can_log_in_from_the_same_address() -> None:
    guess("olga", 30, address="10.0.0.1")

    assert is_in(log_in("otto"))


def test_a_known_user_can_log_in_despite_guesses_from_elsewhere() -> None:
    assert is_in(log_in("olga", address="10.9.9.9"))
    assert WAIT in guess("olga", login_guard.FREE_FROM_ANYWHERE + 5)[-1]

    assert is_in(log_in("olga", address="10.9.9.9"))


def test_the_right_password_is_accepted_after_the_wait(clock: Callable[..., None]) -> None:
    guess("olga", FREE + 1, address="10.0.0.1")
    clock(seconds=2)

    assert is_in(log_in("olga"))
    assert WAIT not in guess("olga", FREE, address="10.0.0.1")[-1]


def test_each_wait_doubles_up_to_15_minutes(clock: Callable[..., None]) -> None:
    waits: list[float] = []
    for _ in range(2 * FREE + 20):
        while wait := login_guard.check_attempt("olga", "10.0.0.1"):
            waits.append(wait.total_seconds())
            clock(seconds=waits[-1])

    assert waits[:3] == [2, 4, 8]
    assert waits == sorted(waits) and waits[-1] == 15 * 60


def test_the_page_names_the_wait() -> None:
    page = guess("olga", FREE + 2, address="10.0.0.1")[-1]

    assert re.search(r"Wait \d seconds, then try again\.", page)


# --- How attempts are stored ----------------------------------------------------------------------


def test_usernames_and_addresses_are_stored_as_digests() -> None:
    guess("my password, typed where the name belongs", 1)

    rows: list[Any] = list(LoginCount.objects.values())
    for row in rows:
        assert re.fullmatch("[0-9a-f]{64}", row.pop("whose"))
        assert "password" not in str(row) and "10.0.0" not in str(row)


def test_the_table_stays_small(monkeypatch: pytest.MonkeyPatch, clock: Callable[..., None]) -> None:
    monkeypatch.setattr(login_guard, "MOST_ROWS", 10)
    assert is_in(log_in("olga"))
    for number in range(30):
        clock(seconds=1)
        login_guard.check_attempt(f"name {number}", "10.0.0.1")
    assert LoginCount.objects.count() <= 10 + 3 and LoginCount.objects.filter(known=True).exists()

    clock(days=2)
    login_guard.check_attempt("olga", "10.0.0.1")
    assert LoginCount.objects.count() == 3  # Of the name here, of the name, and of the address.


@pytest.mark.django_db(transaction=True)
def test_concurrent_guesses_do_not_pass_the_limit(hashed: list[str]) -> None:
    def run() -> None:
        log_in("olga", "wrong")
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(hashed) == FREE + 1


@pytest.mark.django_db(transaction=True)
def test_all_processes_share_the_counts(clock: Callable[..., None]) -> None:
    for _ in range(FREE + 20):
        wait = login_guard.check_attempt("olga", "127.0.0.1") or timedelta(0)
        clock(seconds=wait.total_seconds())

    with FakeOllama() as fake, Gunicorn(gateway_env(fake, GATEWAY_WORKERS="1")) as server:
        browser = requests.Session()
        browser.get(server.url + LOGIN)
        fields = {"csrfmiddlewaretoken": browser.cookies["csrftoken"], "username": "olga"}
        page = browser.post(server.url + LOGIN, {**fields, "password": PASSWORD}).text

    assert WAIT in page
