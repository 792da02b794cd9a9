"""An image is looked at before the model server believes what it claims."""

import struct

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gateway.validation import images
from gateway.validation.images import InvalidImage
from tests.harness.images import encoded, png

LIMIT = 100_000


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def frame(width: int, height: int, marker: int = 0xC0) -> bytes:
    return segment(marker, struct.pack(">BHH", 8, height, width) + b"\x01\x01\x11\x00")


def jpeg(*segments: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(segments) + b"\xff\xd9"


def hidden(skipped: bytes, claimed_at: int) -> bytes:
    """A huge frame behind bytes that a decoder skips, and a small one where a check that takes
    them for a segment goes on to read."""
    return (b"\xff\xd8" + skipped + HUGE).ljust(claimed_at, b"\0") + SMALL


JFIF = segment(0xE0, b"JFIF\0" + bytes(9))
HUGE = frame(50_000, 50_000)
SMALL = frame(1, 1)

GOOD = {
    "png": png(640, 480),
    "jpeg": jpeg(JFIF, frame(640, 480)),
    "progressive jpeg": jpeg(JFIF, segment(0xDB, bytes(65)), frame(640, 480, 0xC2)),
    "largest": png(8_000, 5_000),
}

# What a decoder skips before the frame it believes, so that the check must not be led past it.
BAD = {
    "empty": b"",
    "text": b"hello",
    "gif": b"GIF89a" + bytes(20),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "webp": b"RIFF\0\0\0\0WEBPVP8 " + bytes(20),
    "png that is enormous": png(50_000, 50_000),
    "png without pixels": png(0, 10),
    "png cut short": png()[:20],
    "png that begins with another chunk": png(1, 1, first=b"CgBI"),
    "jpeg that is enormous": jpeg(JFIF, HUGE),
    "jpeg without pixels": jpeg(JFIF, frame(10, 0)),
    "jpeg cut short": jpeg(JFIF)[:12],
    "jpeg without a frame": jpeg(JFIF),
    "jpeg hidden behind a restart marker": hidden(b"\xff\xd0", 4 + 0xFFC0),
    "jpeg hidden behind a fill byte": hidden(b"\xff", 4 + 0xC000),
    "jpeg with an impossible length": jpeg(b"\xff\xe0\x00\x00", HUGE),
    "jpeg with garbage between segments": jpeg(JFIF, b"\0\0", SMALL),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_a_sound_image_passes(data: bytes) -> None:
    images.check(encoded(data), LIMIT)


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_any_other_file_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        images.check(encoded(data), LIMIT)


def test_the_claimed_size_is_read() -> None:
    assert images.size(png(640, 480)) == (640, 480)
    assert images.size(jpeg(JFIF, frame(640, 480))) == (640, 480)


@pytest.mark.parametrize(
    "text",
    ["data:image/png;base64,aGk=", "http://10.0.0.1/x.png", "not base64!", "aGk", "é", "\ud800"],
)
def test_what_is_not_plain_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidImage):
        images.check(text, LIMIT)


def test_an_image_at_the_limit_passes_and_a_larger_one_is_refused() -> None:
    whole = png() + bytes(1000)
    images.check(encoded(whole), len(whole))
    with pytest.raises(InvalidImage, match="larger"):
        images.check(encoded(whole), len(whole) - 10)


def test_a_jpeg_of_countless_segments_is_refused() -> None:
    with pytest.raises(InvalidImage):
        images.check(encoded(jpeg(segment(0xE0, b"") * 2_000, SMALL)), LIMIT)


@examples(deadline=None)
@given(st.sampled_from([b"", b"\xff\xd8", images.PNG_START]), st.binary(max_size=80))
def test_no_bytes_do_worse_than_being_refused(start: bytes, rest: bytes) -> None:
    try:
        images.check(encoded(start + rest), LIMIT)
    except InvalidImage as error:
        assert str(error)
