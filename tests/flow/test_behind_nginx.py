"""The back-office and the logs behind deploy/nginx.conf, with TLS on a non-default port."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
from django.contrib.auth.models import User

from tests.fakes.ollama import FakeOllama
from tests.flow.test_server import FORGED
from tests.harness.gateway import eventually, gateway_env
from tests.servers.gunicorn import Gunicorn
from tests.servers.nginx import MISSING, Nginx

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]


@dataclass
class Deployment:
    nginx: Nginx
    server: Gunicorn

    def browser(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.verify = str(self.nginx.certificate)
        return session


@pytest.fixture
def deployment(transactional_db: None, settings: Any) -> Iterator[Deployment]:
    # As the gateway checks it; the tests' own is quicker.
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    User.objects.create_superuser("olga", password="the operator's own")
    with FakeOllama() as ollama:
        env = gateway_env(ollama, BEHIND_TLS_PROXY="on", ALLOWED_HOSTS="localhost", ACCESS_LOG="1")
        with Gunicorn(env) as server, Nginx(server.port, tls=True) as nginx:
            yield Deployment(nginx, server)


def test_an_operator_logs_in_and_sees_the_back_office(deployment: Deployment) -> None:
    browser, url = deployment.browser(), f"{deployment.nginx.url}/admin/login/?next=/admin/"
    browser.get(url, timeout=10)
    token = browser.cookies["csrftoken"]

    fields = {"username": "olga", "password": "the operator's own", "csrfmiddlewaretoken": token}
    page: Any = browser.post(url, fields, headers={"Origin": deployment.nginx.url}, timeout=10)

    assert page.status_code == 200 and page.url == f"{deployment.nginx.url}/admin/"
    assert "CSRF" not in page.text and "Accounts" in page.text
    [session] = [cookie for cookie in browser.cookies if cookie.name == "sessionid"]
    assert session.secure


def test_a_form_from_another_origin_is_rejected(deployment: Deployment) -> None:
    browser, url = deployment.browser(), f"{deployment.nginx.url}/admin/login/"
    browser.get(url, timeout=10)
    fields = {"username": "olga", "csrfmiddlewaretoken": browser.cookies["csrftoken"]}

    page = browser.post(url, fields, headers={"Origin": "https://localhost"}, timeout=10)

    assert page.status_code == 403


def test_the_landing_page_shows_the_requested_host(deployment: Deployment) -> None:
    page = deployment.browser().get(
        deployment.nginx.url, headers={"Accept": "text/html"}, timeout=10
    )

    assert f"{deployment.nginx.url}/v1" in page.text


def log_with(program: Nginx | Gunicorn, word: str) -> str:
    """Wait until the log of a program contains a word, and return it."""
    eventually(lambda: word in program.log())
    return program.log()


def test_a_path_with_control_characters_is_one_line_of_each_log(deployment: Deployment) -> None:
    page = deployment.browser().get(f"{deployment.nginx.url}{FORGED}?prompt=olg_secret", timeout=10)
    assert page.status_code == 404

    for program in (deployment.nginx, deployment.server):
        log = log_with(program, "FORGED")
        [line] = [line for line in log.splitlines() if "FORGED" in line]
        # Square brackets are escaped by the client.
        assert "GET /x%0A%5B24/Nov/2026:00:00:00%20" in line and "FORGED%1B%5B2J" in line
        assert all(letter.isprintable() for letter in log.replace("\n", ""))
        assert "olg_secret" not in log
