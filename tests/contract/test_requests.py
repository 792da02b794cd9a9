"""Facts about routes, bodies, names and rejections."""

import json
from typing import Any

import pytest

from tests.contract.server import Server

pytestmark = pytest.mark.once  # It needs no database.

HELLO = [{"role": "user", "content": "hello"}]
ONE = {"num_predict": 1}
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhf"
    "DwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def test_unknown_route(server: Server) -> None:
    """An unknown route is 404 in plain text."""
    found = server.call("GET", "/api/nonsuch")
    assert (found.status_code, found.text) == (404, "404 page not found")
    assert found.headers["Content-Type"].startswith("text/plain")


def test_wrong_method(server: Server) -> None:
    """A wrong method is 405 in plain text."""
    found = server.call("GET", "/api/chat")
    assert (found.status_code, found.text) == (405, "405 method not allowed")


def test_trailing_slash(server: Server) -> None:
    """A slash too many is redirected with 307 for POST; GET /api/chat/ is 404."""
    found = server.post("/api/chat/", messages=[])
    assert found.status_code == 307 and found.headers["Location"].endswith("/api/chat")
    assert server.call("GET", "/api/chat/").status_code == 404


def test_root(server: Server) -> None:
    """GET and HEAD of / answer; GET says that Ollama is running."""
    assert server.call("GET", "/").text == "Ollama is running"
    assert server.call("HEAD", "/").status_code == 200


def test_version(server: Server) -> None:
    """/api/version has a version."""
    assert server.version()


def test_empty_body(server: Server) -> None:
    """An empty body is 400 "missing request body"."""
    found = server.call("POST", "/api/generate")
    assert (found.status_code, found.json()["error"]) == (400, "missing request body")


def test_broken_body(server: Server) -> None:
    """A body that is not JSON is 400."""
    assert server.call("POST", "/api/generate", data=b"{").status_code == 400


def test_content_type(server: Server, chat: str) -> None:
    """The Content-Type of a request is ignored, and so is any data after its JSON."""
    body = json.dumps({"model": chat, "prompt": "hi", "stream": False, "options": ONE})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    found = server.call("POST", "/api/generate", data=f"{body} and more", headers=headers)
    assert found.status_code == 200, found.text


def test_field_names(server: Server, chat: str) -> None:
    """Names of fields are matched without regard to case, and the last one counts."""
    body = '{"model": "nonsuch", "MODEL": %s, "prompt": "hi", "stream": false, "options": %s}'
    data = body % (json.dumps(chat), json.dumps(ONE))
    assert server.call("POST", "/api/generate", data=data).status_code == 200


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/api/show"])
def test_unknown_model(server: Server, path: str) -> None:
    """An unknown model is 404, its name in single quotes, for generate, chat and show."""
    found = server.refusal(path, model="nonsuch:1b", prompt="hi", messages=HELLO)
    assert found == (404, "model 'nonsuch:1b' not found")


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings"])
def test_unknown_model_to_embed(server: Server, path: str) -> None:
    """An unknown model is 404, its name in double quotes, for embed and embeddings."""
    found = server.refusal(path, model="nonsuch:1b", input="hi", prompt="hi")
    assert found == (404, 'model "nonsuch:1b" not found, try pulling it first')


def test_no_model(server: Server) -> None:
    """Without a model chat is 400 "model is required", generate is 404."""
    assert server.refusal("/api/chat", messages=HELLO) == (400, "model is required")
    assert server.refusal("/api/generate", prompt="hi") == (404, "model '' not found")


def test_option_types(server: Server, chat: str) -> None:
    """An option of the wrong type is 500, although the client is at fault."""
    asked = {"model": chat, "prompt": "hi", "options": {"num_predict": "8k"}}
    text = 'option "num_predict" must be of type integer'
    assert server.refusal("/api/generate", **asked) == (500, text)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"repeat_penalty": 0}, "must be finite and greater than 0"),
        ({"repeat_last_n": -1}, "must be between 0"),
    ],
    ids=["repeat_penalty", "repeat_last_n"],
)
def test_option_ranges(server: Server, chat: str, option: dict[str, Any], said: str) -> None:
    """repeat_penalty 0 and repeat_last_n -1 are 400."""
    status, text = server.refusal(
        "/api/chat", model=chat, messages=HELLO, stream=False, options=ONE | option
    )
    assert status == 400 and said in text


def test_format_word(server: Server, chat: str) -> None:
    """A format that is neither "json" nor a schema is 500 "invalid format"."""
    status, text = server.refusal("/api/generate", model=chat, prompt="hi", format="xml")
    assert status == 500 and text.startswith("invalid format")


def test_top_logprobs(server: Server, chat: str) -> None:
    """top_logprobs above 20 is 400."""
    found = server.refusal("/api/generate", model=chat, prompt="hi", top_logprobs=21)
    assert found == (400, "top_logprobs must be between 0 and 20")


def test_raw(server: Server, chat: str) -> None:
    """raw together with a system prompt is 400."""
    found = server.refusal("/api/generate", model=chat, prompt="hi", raw=True, system="x")
    assert found == (400, "raw mode does not support template, system, or context")


def test_array_content(server: Server, chat: str) -> None:
    """A message whose content is a list is 400 on the native route."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert server.refusal("/api/chat", model=chat, messages=parts)[0] == 400


def test_think(server: Server, chat: str) -> None:
    """A model that cannot think refuses `think: true` with 400 and accepts `think: false`."""
    if "thinking" in server.post("/api/show", model=chat).json()["capabilities"]:
        pytest.skip("the CHAT model can think")
    asked = {"model": chat, "messages": HELLO, "stream": False, "options": ONE}
    found = server.refusal("/api/chat", think=True, **asked)
    assert found == (400, f'"{chat}" does not support thinking')
    assert server.post("/api/chat", think=False, **asked).status_code == 200


def test_tools_of_a_model_without(server: Server, chat: str) -> None:
    """A model that cannot call tools refuses them with 400 and its full name."""
    if "tools" in server.post("/api/show", model=chat).json()["capabilities"]:
        pytest.skip("the CHAT model can call tools")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    status, text = server.refusal("/api/chat", model=chat, messages=HELLO, tools=[tool])
    assert status == 400 and text.endswith("does not support tools")
    assert text.startswith("registry.ollama.ai/library/")


def test_images_of_a_model_without(server: Server, chat: str) -> None:
    """A text model refuses an image: rendered with 400, native with 500 and nested JSON."""
    if "vision" in server.post("/api/show", model=chat).json()["capabilities"]:
        pytest.skip("the CHAT model can see")
    seen = [{"role": "user", "content": "hi", "images": [PIXEL]}]
    status, text = server.refusal("/api/chat", model=chat, messages=seen, stream=False)
    if server.is_native(chat):
        assert (
            status == 500 and "image input is not supported" in json.loads(text)["error"]["message"]
        )
    else:
        assert status == 400 and "does not support multimodal requests" in text


def test_schema_that_cannot_be_compiled(server: Server, chat: str) -> None:
    """A schema that cannot be compiled is 400: "JSON schema conversion failed", or "Unable to generate parser" of a native model."""  # noqa: E501
    status, text = server.refusal(
        "/api/chat", model=chat, messages=HELLO, format={"type": "nonsuch"}, stream=False
    )
    expected = (
        "Unable to generate parser" if server.is_native(chat) else "JSON schema conversion failed"
    )
    assert status == 400 and expected in text


LONG = " ".join(f"word{n}" for n in range(6000))


def long_for(server: Server, chat: str) -> str:
    """A prompt well over the context of a model."""
    server.load(chat)
    context = max(model["context_length"] for model in server.get("/api/ps")["models"])
    if context > 8192:
        pytest.skip(f"the context of {context} tokens is too long to fill")
    return LONG


def test_prompt_that_may_not_be_cut(server: Server, chat: str) -> None:
    """With truncate: false a long prompt is 400, nested JSON with n_prompt_tokens and n_ctx."""
    asked = [{"role": "user", "content": long_for(server, chat)}]
    status, text = server.refusal(
        "/api/chat", model=chat, messages=asked, truncate=False, stream=False, options=ONE
    )
    told = json.loads(text)["error"]
    assert status == 400 and told["code"] == 400 and told["type"] == "exceed_context_size_error"
    assert told["n_prompt_tokens"] > told["n_ctx"] > 0


def test_long_message(server: Server, chat: str) -> None:
    """A long message is cut to half the context if rendered, and refused with 400 if native."""
    asked = [{"role": "user", "content": long_for(server, chat)}]
    body = {"model": chat, "messages": asked, "stream": False, "options": ONE}
    found = server.post("/api/chat", **body)
    if server.is_native(chat):
        assert found.status_code == 400 and "exceed_context_size_error" in found.json()["error"]
    else:
        context = server.get("/api/ps")["models"][0]["context_length"]
        assert found.json()["prompt_eval_count"] == pytest.approx(context / 2, rel=0.15)
