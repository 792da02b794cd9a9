"""A key also arrives as a Basic password and as `api-key`, for clients that send nothing else."""

import base64
from typing import Any

import pytest
from django.test import Client

from tests.harness.callers import Caller


def ask(**environ: Any) -> Any:
    return Client(raise_request_exception=False).get("/usage", **environ)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("user", ["", "x", "ollama", "name with spaces", "ä"])
def test_the_password_of_basic_credentials_is_the_key(alice: Caller, user: str) -> None:
    assert ask(HTTP_AUTHORIZATION=basic(user, alice.secret)).status_code == 200


def test_the_scheme_of_basic_credentials_has_no_case(alice: Caller) -> None:
    credentials = basic("x", alice.secret).replace("Basic", "bAsIc")

    assert ask(HTTP_AUTHORIZATION=credentials).status_code == 200


def test_a_key_as_the_user_name_is_rejected(alice: Caller) -> None:
    assert ask(HTTP_AUTHORIZATION=basic(alice.secret, "")).status_code == 401


@pytest.mark.parametrize(
    "credentials",
    [
        "Basic",
        "Basic ",
        "Basic !!!!",
        "Basic YQ",
        "Basic YQ==",
        "Basic gICA",
        "Basic a b",
        "Basic Og==",
    ],
)
def test_malformed_basic_credentials_are_rejected(alice: Caller, credentials: str) -> None:
    assert ask(HTTP_AUTHORIZATION=credentials).status_code == 401


def test_api_key_is_another_name_of_x_api_key(alice: Caller) -> None:
    assert ask(HTTP_API_KEY=alice.secret).status_code == 200
    assert ask(HTTP_API_KEY="wrong").status_code == 401
    assert ask(HTTP_API_KEY="wrong", HTTP_X_API_KEY=alice.secret).status_code == 200


def test_a_key_in_the_query_is_rejected(alice: Caller) -> None:
    """Query strings are written to the logs of proxies."""
    response = Client().get(f"/usage?key={alice.secret}&api_key={alice.secret}")

    assert response.status_code == 401
