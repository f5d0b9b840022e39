"""A PNG whose rows were inflated before is the same picture; one that is not as it should be is left to libpng."""

import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxseg.data.read import decode, png
from jaxseg.data.read.header import Unreadable

BITS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 2), (3, 8), (4, 8), (4, 16), (6, 8), (6, 16)]
"""Color types, and bits of a sample."""


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def made(size: tuple[int, int], color: int, bits: int, rows: bytes, *, interlaced: int = 0, pieces: int = 1) -> bytes:
    """A file with `rows` in its IDAT, which is in so many pieces; a palette of all colors, and a comment at the end."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, color, 0, 0, interlaced))
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if color == 3 and bits == 8 else b""
    palette = chunk(b"PLTE", bytes(range(3 << bits))) if color == 3 and bits < 8 else palette
    cut = [rows[len(rows) * i // pieces : len(rows) * (i + 1) // pieces] for i in range(pieces)]
    pixels = b"".join(chunk(b"IDAT", piece) for piece in cut)
    return png.SIGNATURE + header + palette + pixels + chunk(b"tEXt", b"Comment\0none") + chunk(b"IEND", b"")


def noise(size: tuple[int, int], color: int, bits: int, seed: int = 0) -> bytes:
    """Rows of noise, each with a filter of its own."""
    width, height = size
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (height, 1 + -(-width * bits * png.CHANNELS[color] // 8)), np.uint8)
    rows[:, 0] = rng.integers(0, 5, height)
    return rows.tobytes()


def decoded(data: bytes) -> list:
    opened = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return [opened.dtype, opened.tolist(), np.asarray(Image.open(io.BytesIO(data))).tolist()]


def content(data: bytes, kind: bytes) -> list[bytes]:
    return [data[at + 8 : end - 4] for found, at, end in png._chunks(data) if found == kind]


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(BITS),
    pieces=st.integers(1, 4),
    seed=st.integers(0, 9),
)
@example(size=(1, 1), kind=(0, 1), pieces=4, seed=0)
@example(size=(65534, 1), kind=(0, 8), pieces=1, seed=0)  # a block to the brim
@example(size=(65535, 1), kind=(0, 8), pieces=1, seed=0)  # and a byte more
@example(size=(150, 300), kind=(2, 8), pieces=3, seed=0)
@settings(deadline=None)
def test_inflating_changes_no_pixel(size, kind, pieces, seed):
    rows = noise(size, *kind, seed)
    data = made(size, *kind, zlib.compress(rows), pieces=pieces)
    inflated = png.inflate(data)
    assert rows[:1000] in inflated  # it was done
    assert zlib.decompress(b"".join(content(inflated, b"IDAT"))) == rows
    assert png.check(inflated)[0] == png.check(data)[0]  # its checksums are right
    assert decoded(inflated) == decoded(data)
    others = [kind for kind in (b"IHDR", b"PLTE", b"tEXt", b"IEND") if content(data, kind)]
    assert [content(inflated, kind) for kind in others] == [content(data, kind) for kind in others]


def test_a_picture_is_inflated_before_opencv_gets_it(monkeypatch):
    rows = noise((30, 20), 2, 8)
    got, imdecode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, how: got.append(data.tobytes()) or imdecode(data, how))
    decode.read(made((30, 20), 2, 8, zlib.compress(rows)))
    assert rows in got[0]


SIZE = (30, 20)
ROWS = noise(SIZE, 2, 8)
STREAM = zlib.compress(ROWS)

LEFT_ALONE = {
    "interlaced": made(SIZE, 2, 8, STREAM, interlaced=1),
    "too few rows": made(SIZE, 2, 8, zlib.compress(ROWS[:-1])),
    "too many rows": made(SIZE, 2, 8, zlib.compress(ROWS + b"\0")),
    "without its end": made(SIZE, 2, 8, STREAM[:-4]),
    "another checksum": made(SIZE, 2, 8, STREAM[:-1] + bytes([STREAM[-1] ^ 1])),
    "no stream": made(SIZE, 2, 8, b"rows"),
    "unknown color": made(SIZE, 5, 8, STREAM),
}


@pytest.mark.parametrize("data", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_is_not_as_it_should_be_is_left_to_libpng(data):
    assert png.inflate(data) is data


def test_large_images_are_not_held_inflated(monkeypatch):
    data = made(SIZE, 2, 8, STREAM)
    monkeypatch.setattr(png, "MOST_INFLATED", len(ROWS) - 1)
    assert png.inflate(data) is data
    monkeypatch.setattr(png, "MOST_INFLATED", len(ROWS))
    assert png.inflate(data) is not data


def test_a_stream_that_goes_on_and_on_is_not_followed():
    """A file of a hundred kilobytes can hold a hundred megabytes of zeros."""
    data = made(SIZE, 2, 8, zlib.compress(bytes(10**8)))
    tracemalloc.start()
    try:
        assert png.inflate(data) is data
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("at", [20, 45, -2])
def test_a_byte_that_differs_is_found_by_its_checksum(at):
    data = bytearray(made(SIZE, 2, 8, STREAM, pieces=2))
    data[at] ^= 1
    with pytest.raises(Unreadable, match="checksum"):
        png.check(bytes(data))
