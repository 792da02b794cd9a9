"""Routes, methods and bodies of the embedded model server."""

import json

import pytest

from tests.servers.embedded import MODEL, EmbeddedModelServer


def test_the_root_says_that_ollama_is_running(server: EmbeddedModelServer) -> None:
    assert server.request("GET", "/").read() == b"Ollama is running"
    assert server.get("/api/version")["version"] == "0.0.0-embedded"


@pytest.mark.parametrize("path", ["/", "/api/tags"])
def test_head_returns_the_headers_of_get(server: EmbeddedModelServer, path: str) -> None:
    get, head = server.request("GET", path), server.request("HEAD", path)
    assert head.status == 200 and head.read() == b""
    assert head.headers["Content-Length"] == get.headers["Content-Length"]
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


def test_unknown_paths_and_methods_get_plain_text(server: EmbeddedModelServer) -> None:
    unknown, wrong = server.request("GET", "/api/nothing"), server.request("GET", "/api/chat")
    assert (unknown.status, unknown.read()) == (404, b"404 page not found")
    assert (wrong.status, wrong.read()) == (405, b"405 method not allowed")


def test_a_trailing_slash_is_redirected_if_the_route_has_the_method(
    server: EmbeddedModelServer,
) -> None:
    post, get = server.request("POST", "/api/chat/"), server.request("GET", "/api/tags/")
    assert (post.status, post.headers["Location"]) == (307, "/api/chat")
    assert (get.status, get.headers["Location"]) == (301, "/api/tags")
    assert server.request("GET", "/api/chat/").status == 404


def test_a_stream_is_ndjson_in_http_chunks(server: EmbeddedModelServer) -> None:
    response = server.post("/api/generate", prompt="Hi", options={"num_predict": 2})
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert all(json.loads(line) for line in response)


def test_a_body_is_parsed_as_go_parses_it(server: EmbeddedModelServer) -> None:
    body = b'{"model": "x", "MODEL": "smollm2:135m", "Stream": false} and more'
    response = server.request("POST", "/api/generate", body)
    assert json.loads(response.read())["done_reason"] == "load"


def test_a_body_may_come_in_chunks(server: EmbeddedModelServer) -> None:
    body = json.dumps({"model": MODEL}).encode()
    sock = server.open_socket()
    head = b"POST /api/generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    sock.sendall(head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
    assert sock.recv(12) == b"HTTP/1.1 200"
    sock.close()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"model": NaN}', b'{"model": 1}', b"[" * 200_000],
)
def test_a_malformed_body_gets_400_and_the_server_goes_on(
    server: EmbeddedModelServer, body: bytes
) -> None:
    response = server.request("POST", "/api/generate", body)
    assert response.status == 400
    assert json.loads(response.read())["error"]
    assert server.reply(prompt="Hi", options={"num_predict": 1})["eval_count"] == 1


def test_a_body_over_32_mib_gets_413(server: EmbeddedModelServer) -> None:
    response = server.request("POST", "/api/generate", b" " * (32 * 1024 * 1024 + 1))
    assert response.status == 413
    assert json.loads(response.read())["error"] == "the body is larger than 33554432 bytes"


def test_requests_are_not_logged(server: EmbeddedModelServer) -> None:
    server.reply(prompt="a secret word", options={"num_predict": 1})
    server.request("GET", "/api/nothing").read()
    server.request("HEAD", "/").read()
    assert server.log() == ""
