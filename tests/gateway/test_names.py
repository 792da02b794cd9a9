"""Every spelling of one model is one name, and nothing outside the grammar passes."""

import re

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.names import InvalidName, canonical, parse

SPELLINGS = [
    "llama3",
    "LLAMA3",
    "llama3:latest",
    "Llama3:LATEST",
    "library/llama3",
    "library/llama3:latest",
    "registry.ollama.ai/library/llama3:latest",
    "REGISTRY.OLLAMA.AI/Library/Llama3",
    "https://registry.ollama.ai/library/llama3",
    "http://registry.ollama.ai/library/llama3:latest",
    " llama3 ",
    "\tllama3\n",
    "llama3:local",
    "llama3:LOCAL",
    "llama3:latest:local",
]

CANONICAL = {
    "llama3:8b": "llama3:8b",
    "llama3:8B-instruct-q4_0": "llama3:8b-instruct-q4_0",
    "alice/Llama3": "alice/llama3:latest",
    "hf.co/User/Repo:Q4_0": "hf.co/user/repo:q4_0",
    "10.0.0.5:8080/ns/model": "10.0.0.5:8080/ns/model:latest",
    "https://hf.co/user/repo": "hf.co/user/repo:latest",
    "hf.co/library/llama3": "hf.co/library/llama3:latest",
    "my-cloud": "my-cloud:latest",
    "_a.b-c": "_a.b-c:latest",
}

CLOUD = [
    "gpt-oss:cloud",
    "gpt-oss:CLOUD",
    "gpt-oss:20b-cloud",
    "gpt-oss:20b-CLOUD",
    "gpt-oss:20b:cloud",
    " gpt-oss:20b-cloud ",
    "registry.ollama.ai/library/gpt-oss:20b-cloud",
]

INVALID = [
    "",
    " ",
    ":",
    "/",
    "llama3:",
    ":latest",
    "/llama3",
    "llama3/",
    "a//b",
    "a/b/c/d",
    "x/a/b/c/d",
    "x@sha256:0123",
    "../x",
    "..",
    "a/../b",
    ".hidden",
    "-x",
    "x:-tag",
    "x\x00",
    "x\ny",
    "x y",
    "x%00",
    "x?y",
    "x#y",
    "x;y",
    "x\\y",
    "llaма3",
    "llama\u017f",
    "\u212aimi",
    "ｌｌａｍａ３",
    "https://llama3",
    "https://library/llama3",
    "ftp://host/library/llama3",
    "file:///etc/passwd",
    "http://http://a/b/c",
    "x:local:cloud:local",
    "x:cloud:local",
    "x:20b-cloud:local",
    "x:local:local",
    ":local",
    "name.space/model",
    "user@host/ns/model",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_one_model(spelling: str) -> None:
    assert canonical(spelling) == "llama3:latest"


@pytest.mark.parametrize(("spelling", "name"), CANONICAL.items())
def test_the_canonical_name_is_the_shortest_that_keeps_the_tag(spelling: str, name: str) -> None:
    assert canonical(spelling) == name


@pytest.mark.parametrize("name", CLOUD)
def test_a_model_that_runs_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="cloud"):
        canonical(name)


@pytest.mark.parametrize("name", [*INVALID, "x:local:cloud"])
def test_what_the_grammar_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        canonical(name)


@pytest.mark.parametrize("template", ["{}", "m:{}", "{}/m", "hf.co/{}/m:t"])
def test_a_part_has_at_most_80_characters(template: str) -> None:
    assert canonical(template.format("a" * 80))
    with pytest.raises(InvalidName):
        canonical(template.format("a" * 81))


def test_a_host_has_at_most_350_characters() -> None:
    assert canonical("h" * 350 + "/ns/m")
    with pytest.raises(InvalidName):
        canonical("h" * 351 + "/ns/m")


def test_the_longest_name_of_all_passes() -> None:
    longest = "/".join(["h" * 350, "n" * 80, "m" * 80]) + ":" + "t" * 80

    assert canonical("https://" + longest) == longest


def test_other_hosts_are_other_models() -> None:
    names = ["llama3", "hf.co/library/llama3", "huggingface.co/library/llama3"]
    names.append("registry.ollama.ai:443/library/llama3")

    assert len({canonical(name) for name in names}) == 4


def test_parts_are_filled_in() -> None:
    name = parse("user/repo")

    found = (name.host, name.namespace, name.model, name.tag)
    assert found == ("registry.ollama.ai", "user", "repo", "latest")


# --- Properties -----------------------------------------------------------------------------------

LIKELY = st.text("aZ09_-.:/ @%\x00\u017f", max_size=24)
PARTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
SPELLED = st.builds(
    lambda head, model, tail: head + model + tail,
    st.sampled_from(["", "library/", "Ns/", "hf.co/u/", "https://hf.co/u/", "h:80/u/", " "]),
    PARTS,
    st.one_of(st.sampled_from(["", ":local", ":x:local", ":cloud", " "]), PARTS.map(":{}".format)),
)
GRAMMAR = re.compile(
    r"([a-z0-9_][a-z0-9_.:-]{0,349}/)?([a-z0-9_][a-z0-9_-]{0,79}/)?"
    r"[a-z0-9_][a-z0-9_.-]{0,79}:[a-z0-9_][a-z0-9_.-]{0,79}"
)


def canonical_or_none(name: str) -> str | None:
    try:
        return canonical(name)
    except InvalidName:
        return None


@examples(deadline=None)
@given(st.one_of(LIKELY, SPELLED, st.text(max_size=40)))
def test_a_canonical_name_is_its_own_canonical_name(name: str) -> None:
    found = canonical_or_none(name)

    assert found is None or canonical(found) == found


@examples(deadline=None)
@given(st.one_of(LIKELY, SPELLED, st.text(max_size=40)))
def test_whatever_passes_obeys_the_grammar(name: str) -> None:
    found = canonical_or_none(name)

    assert found is None or (GRAMMAR.fullmatch(found) and not found.endswith("-cloud"))


@examples(deadline=None)
@given(SPELLED)
def test_case_and_white_space_around_make_no_other_model(name: str) -> None:
    assert canonical_or_none(f" {name.upper()}\n") == canonical_or_none(name)
