"""Damaged files of every format are read or named: whatever a reader library raises is a DataError with the file."""

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_images import FILES, GRAY, NUMBERS, RGB, SIZE, indexed, npy, pillow

from jaxseg.base.config import Data
from jaxseg.base.errors import DataError
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.images import read_palette, read_pixels
from jaxseg.data.read.mapped import open_tile
from jaxseg.data.read.masks import read_values
from jaxseg.data.read.samples import FULL, Reading
from jaxseg.doctor.survey import look

BITS = Image.fromarray(((NUMBERS > 2) * 255).astype(np.uint8)).convert("1")
SOUND = FILES | {
    "png, 1 bit": pillow("PNG", BITS),
    "png, transparent palette": pillow("PNG", indexed(), transparency=0),
    "webp, animation": pillow("WEBP", RGB, save_all=True, append_images=[RGB.rotate(9)]),
    "bmp, 1 bit": pillow("BMP", BITS),
    "gif, animation": pillow("GIF", indexed(), save_all=True, append_images=[indexed().rotate(90)]),
    "pbm": pillow("PPM", BITS),
    "pgm, ASCII": b"P2\n%d %d\n255\n" % SIZE[::-1] + b" ".join(b"%d" % v for v in NUMBERS.ravel()) + b"\n",
    "jpeg 2000, stream": pillow("JPEG2000", GRAY, no_jp2=True),
    "tiff, PackBits": pillow("TIFF", GRAY, compression="packbits"),
    "tiff, 1 bit": pillow("TIFF", BITS),
    "numpy": npy(NUMBERS),
}
EDGES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 60_000)


def damaged(content: bytes, rng: random.Random) -> bytes:
    data, at = bytearray(content), rng.randrange(len(content))
    match rng.choice(["bits", "head", "cut", "hole", "delete", "insert", "edge", "edge", "splice", "double"]):
        case "bits":
            for _ in range(rng.randrange(1, 12)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case "head":
            data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
        case "cut":
            del data[max(1, at) :]
        case "hole":
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        case "delete":
            del data[at : at + rng.choice([1, 2, 7, 64])]
        case "insert":
            data[at:at] = rng.randbytes(rng.choice([1, 4, 33]))
        case "edge":
            size = rng.choice([1, 2, 4])
            at = rng.randrange(max(1, min(len(data) - size, rng.choice([32, 200, len(data)]))))
            data[at : at + size] = (rng.choice(EDGES) % 256**size).to_bytes(size, rng.choice(["big", "little"]))
        case "splice":
            data[at:] = rng.choice(list(SOUND.values()))[at:]
        case "double":
            data[at:at] = data[at : at + 200]
    return bytes(data) or b"\0"


def read_in_every_way(path: Path) -> int:
    """Returns the number of ways that gave pixels; all other errors than DataError pass."""

    def mapped() -> None:
        array = read_pixels(path).array
        dtype = str(array.dtype) if str(array.dtype) in FULL else "float32"
        image, has_data = open_tile(path, Reading(channels=array.shape[2], dtype=dtype))
        assert image[0:9, 0:9].shape[:2] == has_data[0:9, 0:9].shape

    read = 0
    for way in (lambda: read_pixels(path), lambda: read_values(path), lambda: read_palette(path), mapped):
        with contextlib.suppress(DataError):
            way()
            read += 1
    found = look(Pair(path, path), Data())
    assert bool(found.image) != bool(found.image_error)
    assert bool(found.mask) != bool(found.mask_error)
    return read


@pytest.mark.parametrize("files", [pytest.param(60, id="60"), pytest.param(2000, id="2000", marks=pytest.mark.full)])
def test_damaged_files_are_read_or_named(files, tmp_path):
    path, kinds, ends = tmp_path / "file.bin", sorted(SOUND), {True: 0, False: 0}
    for number in range(files):
        path.write_bytes(damaged(SOUND[kinds[number % len(kinds)]], random.Random(number)))
        ends[read_in_every_way(path) > 1] += 1
    assert min(ends.values()) > files // 10


@pytest.mark.parametrize("kind", sorted(SOUND))
def test_sound_file_is_read_or_named(kind, tmp_path):
    (tmp_path / "file.bin").write_bytes(SOUND[kind])
    assert read_in_every_way(tmp_path / "file.bin") > 1 or "animation" in kind
