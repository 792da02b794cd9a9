"""A body is one JSON object that every parser reads alike, or it is refused with the reason."""

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.test import RequestFactory
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.errors import BadRequest, BodyTimeout, GatewayBusy, LengthRequired, TooLarge
from gateway.metering import NoCredit
from gateway.validation import bodies
from gateway.validation.bodies import parse_object, read_object
from gateway.validation.large_bodies import LARGE_BYTES, Room

REFUSED = {
    "empty": (b"", "missing request body"),
    "blank": (b" \r\n\t ", "missing request body"),
    "null": (b"null", "JSON object"),
    "number": (b"5", "JSON object"),
    "string": (b'"model"', "JSON object"),
    "list": (b'[{"model": "llama3"}]', "JSON object"),
    "not json": (b"model=llama3", "not valid JSON"),
    "single quotes": (b"{'a': 1}", "not valid JSON"),
    "trailing comma": (b'{"a": 1,}', "not valid JSON"),
    "trailing data": (b'{"a": 1} x', "Extra data"),
    "two documents": (b'{"a": 1}{"b": 2}', "Extra data"),
    "cut short": (b'{"a": "b', "not valid JSON"),
    "control character": (b'{"a": "\x01"}', "control character"),
    "NaN": (b'{"a": NaN}', "NaN is not"),
    "Infinity": (b'{"a": Infinity}', "Infinity is not"),
    "-Infinity": (b'{"a": [-Infinity]}', "-Infinity is not"),
    "1e999": (b'{"a": 1e999}', "out of range"),
    "-1e999": (b'{"a": -1e999}', "out of range"),
    "5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "out of range"),
    "nested 5,000 times": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
    "nested 40,000 times": (b"[" * 40_000, "nested too deeply"),
    "objects nested 40,000 times": (b'{"a":' * 40_000, "nested too deeply"),
    "nested 100,000 times": (b"[" * 100_000, "more than 50000 JSON values"),
    "100,000 lists": (b'{"a": [' + b"[]," * 100_000 + b"1]}", "more than 50000 JSON values"),
    "100,000 strings": (b'{"a": [' + b'",",' * 100_000 + b"1]}", "more than 50000 JSON values"),
    "a million quotes": (b'{"a": "' + b'\\"' * 1_000_000 + b'"}', "more than 50000 JSON values"),
    "5 MB of text": (b'{"a": "' + b"a " * 2_500_000 + b'"}', "without its images"),
    "5 MB of blanks": (b" " * 5_000_000 + b"{}", "without its images"),
    "an image of 13 MB": (b'{"a": "' + b"A" * 13_000_000 + b'"}', "image is larger"),
    "an image as a key": (b'{"' + b"k" * 1_000_000 + b'": 1}', "key is too long"),
    "an image with a bad escape": (b'{"a": "' + b"A" * 20_000 + b'\\qA"}', "not valid JSON"),
    "an image behind a string": (b'{"a": "b"' + b"A" * 20_000 + b'"c"}', "not valid JSON"),
    "an image without an end": (b'{"a": "' + b"A" * 20_000, "not valid JSON"),
    "two images under one key": (
        b'{"a": "' + b"A" * 20_000 + b'", "a": "' + b"B" * 20_000 + b'"}',
        '"a" stands twice',
    ),
    "invalid UTF-8": (b'{"a": "\xff"}', "not UTF-8"),
    "surrogate in UTF-8": (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "not UTF-8"),
    "BOM": (b'\xef\xbb\xbf{"a": 1}', "BOM"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "UTF-16 without BOM": ('{"a": 1}'.encode("utf-16-le"), "not valid JSON"),
    "gzip": (gzip.compress(b'{"a": 1}'), "not UTF-8"),
    "duplicate key": (b'{"model": "a", "model": "b"}', '"model" stands twice'),
    "duplicate by escape": (b'{"model": "a", "mode\\u006c": "b"}', '"model" stands twice'),
    "duplicate options": (b'{"options": {}, "options": {}}', '"options" stands twice'),
    "duplicate inside": (b'{"options": {"seed": 1, "seed": 2}}', '"seed" stands twice'),
    "duplicate in a list": (b'{"a": [{"b": 1, "c": 2, "b": 3}]}', '"b" stands twice'),
}


@pytest.mark.parametrize(("body", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_one_plain_object_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        parse_object(body)


ACCEPTED = {
    "object": (b'{"a": [1, 2.5, true, null, "x"]}', {"a": [1, 2.5, True, None, "x"]}),
    "blanks around": (b' \n{"a": 1}\r\n', {"a": 1}),
    "empty object": (b"{}", {}),
    "same key at two levels": (b'{"a": {"a": 1}}', {"a": {"a": 1}}),
    "lone surrogate escape": (b'{"a": "\\ud800"}', {"a": "\ud800"}),
    "NUL escape": (b'{"a": "\\u0000"}', {"a": "\0"}),
    "U+FEFF and U+202E": ('{"a": "\ufeff\u202e"}'.encode(), {"a": "\ufeff\u202e"}),
    "emoji": ('{"a": "😀"}'.encode(), {"a": "😀"}),
    "nested 200 times": (b'{"a":' * 200 + b"1" + b"}" * 200, None),
    "4,000 digits": (b'{"a": ' + b"9" * 4000 + b"}", {"a": int("9" * 4000)}),
    "a key of 4,000 letters": (b'{"' + b"k" * 4000 + b'": 1}', {"k" * 4000: 1}),
    "49,000 keys": (json.dumps(dict.fromkeys(map(str, range(49_000)))).encode(), None),
    "images": (
        json.dumps({"a": {"b": ["A" * 3_000_000, 1, "+/" * 9000], "c": "d"}}).encode(),
        None,
    ),
    "an image with escaped slashes": (
        b'{"a": "' + b"A\\/" * 900_000 + b'"}',
        {"a": "A/" * 900_000},
    ),
    "an image as a data URL": (b'{"a": "data:image/png;base64,' + b"A" * 5_000_000 + b'"}', None),
    "letters in quotes in a text": (
        json.dumps({"a": f'what is "{"A" * 20_000}" and "{"B" * 20_000}\\"? And \\'}).encode(),
        None,
    ),
    "a name that looks like an image's": (
        json.dumps({"a": "00112233-0", "b": "A" * 20_000, "c": ["0"] * 9}).encode(),
        None,
    ),
    "2 MB of Cyrillic as escapes": (json.dumps({"a": "привет, мир! " * 40_000}).encode(), None),
    "a text of 100,000 commas": (b'{"a": "' + b", " * 100_000 + b'"}', {"a": ", " * 100_000}),
}


@pytest.mark.parametrize(("body", "value"), ACCEPTED.values(), ids=ACCEPTED)
def test_an_object_is_read(body: bytes, value: Any) -> None:
    assert parse_object(body) == (json.loads(body) if value is None else value)


def test_a_long_key_is_not_repeated_in_the_error() -> None:
    key = b'"' + b"k" * 100_000 + b'"'
    with pytest.raises(BadRequest) as refused:
        parse_object(b"{" + key + b":1," + key + b":2}")
    assert len(refused.value.message) < 200


@examples(deadline=None)
@given(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans() | st.none()))
def test_what_was_written_is_what_is_read(value: dict[str, Any]) -> None:
    assert parse_object(json.dumps(value).encode()) == value


PIECES = st.sampled_from(
    ['"', "\\", "A" * 4096, "A" * 5000, "/", ",", "[", "]", "{", "}", ":", "1"]
)


@examples(deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_a_body_is_read_alike_with_its_images_taken_out(text: str) -> None:
    """What is long enough to be looked at is read as what is not."""
    body = f'{{"a": {text}}}'.encode()
    looked_at = outcome(parse_object, body + b" " * bodies.SMALL_BYTES)
    assert looked_at == outcome(bodies._parse, body)


def outcome(parse: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return parse(body)
    except BadRequest as refused:
        assume(refused.message != "A key is too long.")
        return None


@examples(deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]":,\\u0019aeE+-.NInf ', max_size=40).map(str.encode))
def test_no_bytes_do_worse_than_being_refused(body: bytes) -> None:
    try:
        assert isinstance(parse_object(body), dict)
    except BadRequest as error:
        assert error.message


# --- From a request -------------------------------------------------------------------------------


def post(body: bytes, **extra: Any) -> Any:
    return RequestFactory().generic("POST", "/generate", body, **extra)


def chunked(body: bytes, **extra: Any) -> Any:
    """A request as a server hands over one without a length: its end is where reading ends."""
    request = post(b"", HTTP_TRANSFER_ENCODING="chunked", **extra)
    request.META["wsgi.input"] = io.BytesIO(body)
    return request


TYPES = ["application/json", "application/x-www-form-urlencoded", "text/plain", "nonsense", ""]
TYPES += ["multipart/form-data; boundary=x", "application/json; charset=utf-7"]


@pytest.mark.parametrize("content_type", TYPES)
def test_the_media_type_is_ignored(content_type: str) -> None:
    request = post(b'{"model": "llama3"}', content_type=content_type)

    assert read_object(request) == {"model": "llama3"}


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP"])
def test_a_compressed_body_is_refused(encoding: str) -> None:
    request = post(gzip.compress(b"{}"), HTTP_CONTENT_ENCODING=encoding)
    with pytest.raises(BadRequest, match="Compressed"):
        read_object(request)


def test_a_body_without_length_is_asked_for_one() -> None:
    with pytest.raises(LengthRequired):
        read_object(post(b""))


def test_a_body_of_length_zero_is_missing() -> None:
    with pytest.raises(BadRequest, match="missing request body"):
        read_object(post(b"", CONTENT_LENGTH="0"))


@pytest.mark.parametrize("length", ["abc", "-1", "1e3", "²", "9" * 5000])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    with pytest.raises(BadRequest):
        read_object(post(b"{}", CONTENT_LENGTH=length))


def test_a_body_shorter_than_announced_is_refused() -> None:
    request = post(b'{"a": 1}')
    request.META["CONTENT_LENGTH"] = "9"
    with pytest.raises(BadRequest, match="shorter"):
        read_object(request)


def test_chunks_that_break_the_rules_are_refused() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise RuntimeError("Invalid chunk size: 'zz'")

    request = chunked(b"")
    request.META["wsgi.input"] = Broken()
    with pytest.raises(BadRequest, match="chunks are malformed"):
        read_object(request)


def test_a_chunked_body_is_read() -> None:
    assert read_object(chunked(b'{"model": "llama3"}')) == {"model": "llama3"}


def test_a_body_at_the_limit_passes(settings: Any) -> None:
    settings.MAX_BODY_BYTES = 10

    assert read_object(post(b'{"a": "b"}')) == read_object(chunked(b'{"a": "b"}')) == {"a": "b"}


def test_a_body_that_announces_to_be_too_large_is_not_read(settings: Any) -> None:
    settings.MAX_BODY_BYTES = 10
    request = post(b'{"a": "bc"}')
    with pytest.raises(TooLarge):
        read_object(request)
    assert request.META["wsgi.input"].read() == b'{"a": "bc"}'


def test_an_endless_chunked_body_is_read_no_further_than_the_limit(settings: Any) -> None:
    settings.MAX_BODY_BYTES = 100_000
    request = chunked(b" " * 1_000_000)
    with pytest.raises(TooLarge):
        read_object(request)
    assert request.META["wsgi.input"].tell() == 100_001


def test_a_body_that_stops_coming_times_out() -> None:
    class Stalled(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise TimeoutError

    request = chunked(b"")
    request.META["wsgi.input"] = Stalled()
    with pytest.raises(BodyTimeout):
        read_object(request)


# --- Large bodies ---------------------------------------------------------------------------------

IMAGES = json.dumps({"images": ["A" * 400_000]}).encode()


def welcome() -> None:
    """Admit whoever asks."""


def no_credit() -> None:
    raise NoCredit("The account has no credit left.")


@pytest.mark.parametrize("make", [post, chunked])
def test_a_large_body_is_read_where_it_may_be(make: Any) -> None:
    with bodies.reading(make(IMAGES), welcome) as found:
        assert found == json.loads(IMAGES)


@pytest.mark.parametrize("make", [post, chunked])
def test_a_large_body_is_refused_where_none_is_expected(make: Any) -> None:
    with pytest.raises(TooLarge):
        read_object(make(IMAGES))


@pytest.mark.parametrize(("make", "read"), [(post, 0), (chunked, LARGE_BYTES + 1)])
def test_a_large_body_of_who_cannot_pay_is_not_read(make: Any, read: int) -> None:
    request = make(IMAGES)
    with pytest.raises(NoCredit):
        with bodies.reading(request, no_credit):
            raise AssertionError("it was read")
    assert len(request.META["wsgi.input"].read()) == len(IMAGES) - read


@pytest.mark.parametrize("make", [post, chunked])
def test_a_small_body_asks_nobody(make: Any) -> None:
    with bodies.reading(make(b'{"a": 1}'), no_credit) as found:
        assert found == {"a": 1}


def test_there_is_room_for_so_many_bytes_at_a_time() -> None:
    room = Room(timeout=0.01)
    with room.of(6, 10), room.of(4, 10):
        with pytest.raises(GatewayBusy):
            with room.of(1, 10):
                raise AssertionError("there was room")
    with room.of(10, 10):
        pass
