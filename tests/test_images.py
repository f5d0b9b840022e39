"""Picture files of every kind come back as they were written; what is wrong with one is a DataError with its name."""

import io
import logging
import os
import socket
import struct
import sys
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from jaxseg.base.errors import DataError
from jaxseg.data.find.listing import EXTENSIONS, list_images
from jaxseg.data.read import decode, tiff
from jaxseg.data.read.decode import PNG, Unreadable
from jaxseg.data.read.images import read_palette, read_pixels
from jaxseg.data.read.mapped import open_tile
from jaxseg.data.read.masks import read_values
from jaxseg.data.read.samples import Reading

SIZE = (12, 17)


def noise(*shape: int, dtype="uint8", seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1e3, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def soft(*shape: int) -> np.ndarray:
    return cv2.GaussianBlur(noise(*shape), (0, 0), 3)


def pillow(kind: str, picture: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def as_tiff(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, color: int, rows: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return PNG + b"".join([chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


RGB = Image.fromarray(soft(*SIZE, 3))
GRAY = Image.fromarray(soft(*SIZE))
ALPHA = Image.fromarray(noise(*SIZE, seed=1))
RGBA = Image.merge("RGBA", [*RGB.split(), ALPHA])
NUMBERS = noise(*SIZE) % 5
COLORS = [(0, 0, 0), (200, 10, 20), (30, 210, 40), (50, 60, 220), (250, 250, 90)]


def indexed() -> Image.Image:
    picture = Image.fromarray(NUMBERS)
    picture.putpalette([channel for color in COLORS for channel in color])
    return picture


TURNED = Image.Exif()
TURNED[0x0112] = 6

FILES = {
    "png": pillow("PNG", RGB),
    "png, alpha": pillow("PNG", RGBA, exif=TURNED),
    "png, palette": pillow("PNG", indexed()),
    "png, 16 bits": cv2.imencode(".png", noise(*SIZE, dtype="uint16"))[1].tobytes(),
    "jpeg": pillow("JPEG", RGB, exif=TURNED),
    "jpeg, progressive": pillow("JPEG", RGB, progressive=True),
    "jpeg, gray": pillow("JPEG", GRAY),
    "jpeg, CMYK": pillow("JPEG", RGB.convert("CMYK")),
    "webp": pillow("WEBP", RGB),
    "webp, lossless": pillow("WEBP", RGBA, lossless=True),
    "bmp": pillow("BMP", RGB),
    "bmp, palette": pillow("BMP", indexed()),
    "ppm": pillow("PPM", RGB),
    "pgm": pillow("PPM", GRAY),
    "gif": pillow("GIF", indexed()),
    "jpeg 2000": pillow("JPEG2000", RGB),
    "tiff": as_tiff(np.asarray(RGB), photometric="rgb", rowsperstrip=4, metadata=None),
    "tiff, palette": pillow("TIFF", indexed()),
    "tiff, deflate": as_tiff(np.asarray(GRAY), compression="zlib", rowsperstrip=4),
    "tiff, LZW": pillow("TIFF", RGB, compression="tiff_lzw"),
    "tiff, tiles": as_tiff(np.asarray(RGB), photometric="rgb", compression="zlib", tile=(16, 16)),
    "tiff, bands": as_tiff(noise(12, *SIZE, dtype="int16"), photometric="minisblack", planarconfig="separate"),
    "tiff, big": as_tiff(noise(*SIZE, dtype="float32"), bigtiff=True),
    "tiff, pages": as_tiff(noise(3, *SIZE, dtype="float32"), photometric="minisblack"),
}


@pytest.fixture(scope="module")
def put(tmp_path_factory):
    """put(content, name) -> a file with that content."""
    folder = tmp_path_factory.mktemp("files")

    def write(content: bytes, name: str = "file.png") -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return write


def reason(path: Path) -> str:
    """What the error says is wrong with the file, which it names."""
    with pytest.raises(DataError) as caught:
        read_pixels(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")
    assert problem in str(caught.value)
    return problem.removeprefix(f"{path}: ")


# what was written comes back


@pytest.mark.parametrize("kind", FILES)
def test_format_follows_content_not_extension(kind, put):
    first, second = (read_pixels(put(FILES[kind], f"file.{end}")) for end in ("bin", "jpg"))
    assert first.array.tobytes() == second.array.tobytes()
    assert first.array.shape[:2] in (SIZE, SIZE[::-1])


@given(
    bands=st.sampled_from([1, 3, 4]),
    dtype=st.sampled_from(["uint8", "uint16"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_png_decodes_exactly_to_bgr(put, bands, dtype, size, seed):
    array = noise(*size, bands, dtype=dtype, seed=seed)
    pixels = read_pixels(put(cv2.imencode(".png", array)[1].tobytes()))
    assert (pixels.array.dtype, pixels.color, pixels.nodata) == (array.dtype, bands > 1, None)
    assert pixels.array.tobytes() == array.tobytes()


@given(
    bands=st.integers(1, 13),
    dtype=st.sampled_from(
        ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float16", "float32", "float64"]
    ),
    planar=st.sampled_from(["contig", "separate"]),
    big=st.booleans(),
    compression=st.sampled_from([None, "zlib", "lzma"]),
    tile=st.sampled_from([None, (16, 32)]),
    byteorder=st.sampled_from("<>"),
    size=st.tuples(st.integers(2, 70), st.integers(2, 70)),
)
@settings(max_examples=80)
def test_tiff_decodes_exactly_in_file_order(put, bands, dtype, planar, big, compression, tile, byteorder, size):
    array = noise(*size, bands, dtype=dtype)
    written = array[..., 0] if bands == 1 else np.moveaxis(array, -1, 0) if planar == "separate" else array
    layout = {"planarconfig": planar} if bands > 1 else {}
    how = {"bigtiff": big, "compression": compression, "tile": tile, "byteorder": byteorder}
    pixels = read_pixels(put(as_tiff(written, photometric="minisblack", **layout, **how), "file.tif"))
    assert not pixels.color
    assert pixels.array.dtype == array.dtype
    assert pixels.array.dtype.isnative
    np.testing.assert_array_equal(pixels.array, array)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_lzw_is_read_without_imagecodecs_where_opencv_can(dtype, bands, put):
    array = noise(*SIZE, bands, dtype=dtype)
    file = cv2.imencode(".tif", array, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    pixels = read_pixels(put(file, "file.tif"))
    assert pixels.array.dtype == array.dtype
    np.testing.assert_array_equal(pixels.array, array)


def compressed_as(number: int, array: np.ndarray, **options) -> bytes:
    """A TIFF that says it is compressed so."""
    file = io.BytesIO(as_tiff(array, **options))
    with tifffile.TiffFile(file, mode="r+") as opened:
        opened.pages[0].tags[259].overwrite(number)
    return file.getvalue()


@pytest.mark.skipif("imagecodecs" in sys.modules, reason="imagecodecs is installed")
@pytest.mark.parametrize(("number", "name"), [(5, "LZW"), (50000, "ZSTD"), (34887, "LERC"), (4, "CCITTFAX4")])
def test_missing_imagecodecs_is_named(number, name, put):
    bands = noise(*SIZE, 12, dtype="int16")
    said = reason(put(compressed_as(number, bands, photometric="minisblack", planarconfig="contig"), "file.tif"))
    assert name in said
    assert "pip install imagecodecs" in said


def test_color_tiff_decodes_to_bgr_and_alpha(put):
    array = noise(*SIZE, 4)
    for bands in (3, 4):
        pixels = read_pixels(put(as_tiff(array[..., :bands], photometric="rgb"), "file.tif"))
        assert pixels.color
        assert pixels.array.tolist() == array[..., [2, 1, 0, 3][:bands]].tolist()
    planar = as_tiff(np.moveaxis(array[..., :3], -1, 0), photometric="rgb", planarconfig="separate")
    assert read_pixels(put(planar, "file.tif")).array.tolist() == array[..., 2::-1].tolist()


def test_rgb_with_infrared_is_bands_not_color(put):
    array = noise(*SIZE, 4)
    pixels = read_pixels(put(as_tiff(array, photometric="rgb", extrasamples=["unspecified"]), "file.tif"))
    assert not pixels.color
    assert pixels.array.tolist() == array.tolist()


def test_tiff_pages_become_bands_without_overviews(put):
    array = noise(5, *SIZE, dtype="int16")
    assert read_pixels(put(as_tiff(array, photometric="minisblack"), "a.tif")).array.tolist() == (
        np.moveaxis(array, 0, -1).tolist()
    )
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(array[0], photometric="minisblack")
        writer.write(array[0, ::2, ::2], photometric="minisblack", subfiletype=1)
    assert read_pixels(put(file.getvalue(), "b.tif")).array[..., 0].tolist() == array[0].tolist()


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        ([noise(4, 5), noise(5, 4)], "2 pictures of several sizes or types"),
        ([noise(4, 5), noise(4, 5, dtype="uint16")], "2 pictures of several sizes or types"),
        ([noise(4, 5, 3), noise(4, 5, 3)], "2 pictures of 3 bands"),
        ([noise(4, 5).astype(np.complex64)], "complex64"),
    ],
)
def test_tiff_of_several_pictures_is_refused(pages, said, put):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", metadata=None)
    assert said in reason(put(file.getvalue(), "file.tif"))


@pytest.mark.parametrize(
    ("text", "nodata"),
    [("-9999", -9999.0), ("0", 0.0), ("-3.4028234663852886e+38", -3.4028234663852886e38), ("nan", None), ("?", None)],
)
def test_gdal_nodata_is_read(text, nodata, put):
    file = as_tiff(noise(*SIZE, dtype="float32"), extratags=[(42113, "s", 0, text, True)])
    assert read_pixels(put(file, "file.tif")).nodata == nodata


def test_tiles_omitted_by_gdal_hold_nodata(put):
    array = noise(32, 48, dtype="int16")
    file = io.BytesIO(as_tiff(array, tile=(16, 16), compression="zlib", extratags=[(42113, "s", 0, "-7", True)]))
    with tifffile.TiffFile(file, mode="r+") as opened:
        tags = opened.pages[0].tags
        for code in (324, 325):  # where tiles begin, and how long they are
            values = list(tags[code].value)
            values[1] = 0
            tags[code].overwrite(values)
    array[:16, 16:32] = -7
    assert read_pixels(put(file.getvalue(), "file.tif")).array[..., 0].tolist() == array.tolist()


def test_min_is_white_is_inverted(put):
    array = noise(*SIZE)
    assert read_pixels(put(as_tiff(array, photometric="miniswhite"), "a.tif")).array[..., 0].tolist() == (
        (255 - array).tolist()
    )


# palettes and few bits


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF"])
def test_palette_picture_gives_colors_or_indices(kind, put):
    path = put(pillow(kind, indexed()))
    pixels = read_pixels(path)
    assert pixels.color
    assert pixels.array.tolist() == np.array(COLORS, np.uint8)[NUMBERS][..., ::-1].tolist()
    numbers = read_pixels(path, indices=True)
    assert not numbers.color
    assert numbers.array[..., 0].tolist() == NUMBERS.tolist()
    assert read_palette(path)[: len(COLORS)].tolist() == [list(color) for color in COLORS]


@pytest.mark.skipif("imagecodecs" in sys.modules, reason="imagecodecs is installed")
def test_lzw_palette_keeps_its_indices(put):
    path = put(pillow("TIFF", indexed(), compression="tiff_lzw"))
    assert read_pixels(path, indices=True).array[..., 0].tolist() == NUMBERS.tolist()


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "pgm", "webp"])
def test_read_palette_without_palette_is_none(kind, put):
    assert read_palette(put(FILES[kind])) is None


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_scale_to_full_range_or_stay_as_stored(bits, put):
    stored = noise(8, 16) % 2**bits
    packed = np.packbits(np.unpackbits(stored[..., None], axis=-1)[..., 8 - bits :].reshape(8, -1), axis=-1)
    path = put(png(16, 8, bits, 0, b"".join(b"\0" + row.tobytes() for row in packed)))
    assert read_pixels(path).array[..., 0].tolist() == (stored * (255 // (2**bits - 1))).tolist()
    assert read_pixels(path, indices=True).array[..., 0].tolist() == stored.tolist()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "GIF"])
def test_one_bit_is_0_and_255_or_0_and_1(kind, put):
    bits = noise(*SIZE) > 128
    path = put(pillow(kind, Image.fromarray(bits)))
    assert (read_pixels(path).array == np.where(bits, 255, 0)[..., None]).all()
    if kind != "GIF":  # is always a palette
        assert read_pixels(path, indices=True).array[..., 0].tolist() == bits.astype(int).tolist()


# orientation, alpha


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_matches_imread(kind, orientation, put):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    path = put(pillow(kind, RGB, exif=exif, **options))
    expected = cv2.imread(str(path))
    assert read_pixels(path).array.tobytes() == expected.tobytes()
    if kind != "JPEG":  # alpha and palettes take other ways through the decoders
        alpha = read_pixels(put(pillow(kind, RGBA, exif=exif, **options))).array
        assert alpha[..., :3].tolist() == expected.tolist()
        assert alpha[..., 3].tolist() == decode.turn(np.asarray(ALPHA), orientation).tolist()
    if kind == "PNG":
        path = put(pillow(kind, indexed(), exif=exif))
        seen, numbers = read_pixels(path).array, read_pixels(path, indices=True).array[..., 0]
        assert np.array(COLORS)[numbers][..., ::-1].tolist() == seen.tolist()
        assert numbers.tolist() == decode.turn(NUMBERS, orientation).tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation_is_applied(orientation, put):
    array = noise(*SIZE, 3)
    path = put(as_tiff(array, photometric="rgb", extratags=[(274, "H", 1, orientation, True)]))
    assert read_pixels(path).array.tolist() == decode.turn(array[..., ::-1], orientation).tolist()
    if orientation < 5:  # what is on its side OpenCV does not read
        assert read_pixels(path).array.tolist() == cv2.imread(str(path)).tolist()


def test_gray_with_opaque_alpha_is_gray_else_color(put):
    opaque = Image.merge("LA", [GRAY, Image.new("L", GRAY.size, 255)])
    assert read_pixels(put(pillow("PNG", opaque))).array.tolist() == np.asarray(GRAY)[..., None].tolist()
    pixels = read_pixels(put(pillow("PNG", Image.merge("LA", [GRAY, ALPHA]))))
    assert pixels.color
    assert pixels.array.tolist() == np.dstack([GRAY, GRAY, GRAY, ALPHA]).tolist()


def test_irrelevant_png_chunks_cause_no_warning(put, capfd):
    whole = FILES["png"]
    junk = [
        chunk(b"iCCP", b"x\0\0no profile"),
        chunk(b"sRGB", b"\x07"),
        chunk(b"bKGD", b"1"),
        chunk(b"teSt", b"?" * 99),
    ]
    assert read_pixels(put(whole[:33] + b"".join(junk) + whole[33:])).array.tobytes() == (
        read_pixels(put(whole)).array.tobytes()
    )
    assert capfd.readouterr() == ("", "")


# what is wrong


@given(kind=st.sampled_from(list(FILES)), part=st.floats(0, 1, exclude_max=True))
@settings(max_examples=300)
def test_truncated_file_is_an_error(put, kind, part):
    whole = FILES[kind]
    path = put(whole[: int(part * len(whole))])
    try:
        found = read_pixels(path).array
    except DataError as error:
        assert "file.png: " in str(error)  # noqa: PT017
    else:  # a GIF without its last two bytes, a TIFF without the end of its remarks
        assert part > 0.9
        assert found.tobytes() == read_pixels(put(whole)).array.tobytes()


@pytest.mark.parametrize("kind", sorted(set(FILES) - {"gif", "tiff, pages"}))
def test_missing_last_bytes_are_an_error_and_print_nothing(kind, put, capfd):
    whole = FILES[kind]
    for missing in (1, 2, 3, 5, 9, 13):
        assert reason(put(whole[:-missing]))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("more", [b"\0" * 64, b"\xff\xd8\xff\xe0 another", b"junk"])
@pytest.mark.parametrize("kind", ["png", "jpeg", "jpeg, progressive"])
def test_bytes_after_the_picture_are_ignored(kind, more, put):
    assert read_pixels(put(FILES[kind] + more)).array.tobytes() == read_pixels(put(FILES[kind])).array.tobytes()


def test_end_of_a_jpeg_preview_is_not_end_of_file(put):
    preview = FILES["jpeg, gray"]
    whole = FILES["jpeg, progressive"]
    content = whole[:2] + b"\xff\xe2" + struct.pack(">H", len(preview) + 2) + preview + whole[2:]
    assert read_pixels(put(content)).array.tobytes() == read_pixels(put(whole)).array.tobytes()
    assert "cut off" in reason(put(content[:-2]))


@given(position=st.integers(8, len(FILES["png"]) - 1), bit=st.integers(0, 7))
@settings(max_examples=200)
def test_flipped_bit_in_png_is_detected(put, position, bit):
    content = bytearray(FILES["png"])
    content[position] ^= 1 << bit
    with pytest.raises(DataError):
        read_pixels(put(bytes(content)))


@st.composite
def damaged(draw) -> bytes:
    content = bytearray(draw(st.sampled_from(list(FILES.values()))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content) - 1))
        how = draw(st.sampled_from(["flip", "zero", "insert", "delete", "head"]))
        if how == "flip":
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "zero":
            content[at : at + 30] = bytes(len(content[at : at + 30]))
        elif how == "insert":
            content[at:at] = draw(st.binary(max_size=20))
        elif how == "delete" and len(content) > 60:
            del content[at : at + draw(st.integers(1, 30))]
        else:
            content[at % 40] = draw(st.integers(0, 255))
    return bytes(content)


@given(content=damaged())
@settings(max_examples=400)
def test_damaged_file_decodes_or_raises_data_error(put, content):
    path = put(content)
    for read in (read_pixels, lambda p: read_pixels(p, indices=True), read_palette):
        try:
            read(path)
        except DataError as error:
            assert "file.png" in str(error)  # noqa: PT017


MAGIC = [b"", *decode.PLUGINS, decode.JPEG, b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"]


@given(magic=st.sampled_from(MAGIC), content=st.binary(max_size=300), end=st.sampled_from(sorted(EXTENSIONS)))
@example(magic=b"", content=b"a,b,c\n1,2,3\n", end=".png")
@settings(max_examples=300)
def test_non_picture_bytes_raise_data_error_for_every_extension(put, magic, content, end):
    path = put(magic + content, f"file{end}")
    with pytest.raises(DataError, match="file"):
        read_pixels(path)


def test_text_file_error_shows_its_first_bytes(put):
    said = reason(put(b"hello world"))
    assert said.startswith("is not a picture: it begins with b'hello wo'")
    assert "TIFF" in said


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


HUGE = {
    "png": png(100_000, 100_000, 8, 2, b""),
    "png below the limit": png(30_000, 30_000, 8, 2, b""),
    "png of a bit": png(32_000, 32_000, 1, 0, b""),
    "jpeg": FILES["jpeg, gray"].replace(struct.pack(">HH", *SIZE), struct.pack(">HH", 65_500, 65_500)),
    "bmp": bmp(100_000, 100_000),
    "bmp below the limit": bmp(30_000, 30_000),
    "ppm": b"P6 100000 100000 255\n" + bytes(50),
    "gif": FILES["gif"].replace(struct.pack("<HH", *SIZE[::-1]), struct.pack("<HH", 60_000, 60_000)),
    "gif below the limit": FILES["gif"].replace(struct.pack("<HH", *SIZE[::-1]), struct.pack("<HH", 30_000, 30_000)),
}


@pytest.mark.parametrize("kind", HUGE)
def test_huge_claimed_size_is_refused_without_allocating(kind, put, capfd):
    resource = pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = reason(put(HUGE[kind]))
    assert "claims" in said or "cut off" in said or "cannot decode" in said
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 100e6
    assert capfd.readouterr() == ("", "")


def test_huge_claimed_size_is_named(put):
    assert "claims 100000x100000 pixels" in reason(put(HUGE["png"]))
    assert "claims 1048577x2 pixels; expected at most 2^30 pixels and 2^20 on a side" in reason(
        put(png(2**20 + 1, 2, 8, 0, b""))
    )
    assert "claims 1048576x2 pixels, which 65 bytes cannot hold" in reason(put(png(2**20, 2, 8, 0, b"")))
    assert "claims 65500x65500 pixels" in reason(put(HUGE["jpeg"]))
    assert "claims 30000x30000 pixels, which 65 bytes cannot hold" in reason(put(HUGE["png below the limit"]))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
def test_tiff_claiming_more_than_its_bytes_hold_is_refused(options, put):
    file = io.BytesIO(as_tiff(noise(32, 32), **options))
    with tifffile.TiffFile(file, mode="r+") as opened:
        for code in (256, 257):
            opened.pages[0].tags[code].overwrite(60_000)
    assert "claims 60000x60000 pixels, which" in reason(put(file.getvalue(), "file.tif"))


def test_tiff_may_claim_what_its_bytes_can_hold_and_little_more(put):
    flat = np.zeros((1000, 1000), np.uint8)
    data = as_tiff(flat, compression="zlib", rowsperstrip=1000)
    np.testing.assert_array_equal(np.squeeze(read_values(put(data, "flat.tif"))[0]), flat)
    file = io.BytesIO(data)
    claimed = (1100 * len(data) + 2**17) // 1000
    with tifffile.TiffFile(file, mode="r+") as opened:
        for code in (257, 278):
            opened.pages[0].tags[code].overwrite(claimed)
    assert f"claims 1000x{claimed} pixels, which" in reason(put(file.getvalue(), "file.tif"))


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_a_picture_without_pixels_is_refused(width, height, put):
    assert reason(put(png(width, height, 8, 0, b"")))
    assert reason(put(b"P5 %d %d 255\n" % (width, height)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("alpha", [False, True])
def test_orientation_turns_the_picture_and_is_told(kind, orientation, alpha, put):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = RGBA if alpha and kind != "JPEG" else RGB
    how = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    stored = read_pixels(put(pillow(kind, picture, **how))).array
    pixels = read_pixels(put(pillow(kind, picture, exif=exif, **how)))
    assert pixels.orientation == orientation
    assert pixels.array.tobytes() == decode.turn(stored, orientation).tobytes()
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(pillow(kind, picture, exif=exif, **how))))
    assert pixels.array.shape[:2] == upright.size[::-1]
    if kind != "JPEG":  # its decoders differ
        assert np.asarray(upright)[..., :3].tolist() == pixels.array[..., 2::-1].tolist()


def test_damaged_exif_does_not_turn_the_picture(put):
    whole = pillow("JPEG", RGB, exif=TURNED)
    at = whole.index(b"Exif\0\0")
    assert read_pixels(put(whole[: at + 6] + b"\xff" * 8 + whole[at + 14 :])).orientation == 1


@pytest.mark.parametrize("how", [{"imagej": True}, {"photometric": "minisblack"}], ids=["ImageJ", "tifffile"])
def test_planes_behind_one_directory_become_bands(how, put):
    planes = noise(3, *SIZE)
    path = put(as_tiff(planes, truncate=True, **how), "file.tif")
    assert read_pixels(path).array.tolist() == np.moveaxis(planes, 0, -1).tolist()
    image, _ = open_tile(path, Reading(channels=3))
    assert image[:, :].tolist() == np.moveaxis(planes, 0, -1).tolist()
    assert "cut off" in reason(put(path.read_bytes()[:-1], "file.tif")) or "damaged" in reason(path)


def test_stack_of_planes_and_times_is_refused(put):
    stack = as_tiff(noise(2, 3, *SIZE), imagej=True, truncate=True, metadata={"axes": "TZYX"})
    assert "is a stack of shape (2, 3, 12, 17)" in reason(put(stack, "file.tif"))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["bool", "uint8", ">u2", "int64", "float32"])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("shape", [SIZE, (*SIZE, 5)])
def test_numpy_arrays_are_read_as_bands(dtype, order, shape, put):
    array = np.asarray(noise(*shape) // 200, dtype=dtype, order=order)
    pixels = read_pixels(put(npy(array), "a.npy"))
    assert (pixels.color, pixels.array.shape) == (False, np.atleast_3d(array).shape)
    assert pixels.array.dtype.isnative
    assert pixels.array.tolist() == np.atleast_3d(array).astype(pixels.array.dtype).tolist()
    assert read_palette(put(npy(array), "a.npy")) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (npy(np.zeros(5)), "has shape (5,); expected height x width"),
        (npy(np.zeros((3, 8, 9))), "expected the channels last"),
        (npy(np.zeros((3, 3), complex)), "holds complex128"),
        (npy(np.zeros((8, 9)))[:-1], "is cut off or damaged: 575 bytes cannot hold (8, 9) of float64"),
        (npy(np.array([[None]])), "holds object"),
        (npy(np.zeros((8, 9)))[:20], "is damaged: "),
    ],
)
def test_unusual_numpy_array_is_named(content, said, put):
    assert said in reason(put(content, "a.npy"))


def test_pointer_of_git_lfs_is_named(put):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    assert reason(put(pointer)) == "is a pointer of Git LFS, not the file itself: run git lfs pull"


@pytest.mark.parametrize("error", [KeyError("x"), SyntaxError("broken"), struct.error("unpack"), RecursionError()])
@pytest.mark.parametrize("kind", ["gif", "png", "tiff", "jpeg 2000"])
def test_error_of_any_type_in_a_reader_names_the_file(error, kind, put, monkeypatch):
    def fail(*_, **__):
        raise error

    for owner, name in ((decode, "_plugin"), (decode, "check_png"), (tiff, "_pixels")):
        monkeypatch.setattr(owner, name, fail)
    assert "is damaged" in reason(put(FILES[kind])) or "is a damaged TIFF" in reason(put(FILES[kind]))


def test_one_hot_masks_are_said_as_what_they_are(put):
    pages = np.arange(4)[:, None, None] == NUMBERS % 4
    for on in (1, 255, 1.0):
        path = put(
            as_tiff(pages * np.array(on).astype(type(on) if on == 1.0 else np.uint8), photometric="minisblack"), "m.tif"
        )
        with pytest.raises(DataError, match=r"m\.tif: is one-hot: in each pixel one of 4 bands is set"):
            read_values(path)
    with pytest.raises(DataError, match="is one-hot: in each pixel one of 2 bands"):
        read_values(put(npy(np.stack([pages[0], ~pages[0]], -1)), "m.npy"))


def test_plain_bands_of_a_mask_are_red_green_and_blue(put):
    colors = noise(*SIZE, 3)
    plain, colored = (as_tiff(colors, photometric=how, planarconfig="contig") for how in ("minisblack", "rgb"))
    values = [read_values(put(file, "m.tif"))[0].tolist() for file in (plain, colored)]
    assert values[0] == values[1] == (colors.astype(int) @ [65536, 256, 1]).tolist()


def test_an_animation_is_refused(put):
    frames = [Image.fromarray(noise(8, 8, seed=seed)) for seed in range(3)]
    assert "animation of 3 frames" in reason(put(pillow("GIF", frames[0], save_all=True, append_images=frames[1:])))


def test_tifffile_log_becomes_the_error_and_prints_nothing(put, capfd):
    records, handler = [], logging.Handler()
    handler.emit = records.append
    logging.getLogger().addHandler(handler)
    whole = bytearray(FILES["tiff, deflate"])
    with tifffile.TiffFile(io.BytesIO(whole)) as opened:
        at = opened.pages[0].tags[258].offset  # bits of a sample
    whole[at + 2 : at + 4] = b"\xee\xee"  # a type that there is not
    try:
        assert "invalid data type" in reason(put(bytes(whole)))
    finally:
        logging.getLogger().removeHandler(handler)
    assert capfd.readouterr() == ("", "")
    assert records == []


def test_tifffile_log_is_kept_per_thread(put, monkeypatch):
    check = tiff._check

    def noisy(pages, size):
        other = threading.Thread(target=logging.getLogger("tifffile").error, args=("of another file",))
        other.start(), other.join()
        check(pages, size)

    monkeypatch.setattr(tiff, "_check", noisy)
    assert read_pixels(put(FILES["tiff"])).array.shape == (*SIZE, 3)


def test_truncated_tiff_error_names_the_byte(put):
    for kind in ("tiff", "tiff, deflate", "tiff, tiles"):
        whole = FILES[kind]
        assert f"is cut off after {len(whole) - 9} bytes" in reason(put(whole[:-9]))


# files that cannot be opened


def test_an_empty_file_is_named(put):
    assert reason(put(b"")) == "is empty (0 bytes)"


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert "folder" in reason(tmp_path / "a.png")
    assert "cannot be opened" in reason(tmp_path / "b.png")
    assert "cannot be opened" in reason(tmp_path / "a.png" / "b.png" / "c.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_sockets_and_devices_are_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.png"))
        said = []
        reader = threading.Thread(
            target=lambda: said.extend(reason(tmp_path / name) for name in ("pipe.png", "zero.png", "s.png")),
            daemon=True,
        )
        reader.start()
        reader.join(timeout=5)
    assert said == ["is a pipe, device or socket; expected an image file"] * 3


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_a_loop_of_links_is_named(tmp_path):
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert "cannot be opened" in reason(tmp_path / "a.png")


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", int)() == 0, reason="everything is readable here")
def test_file_without_read_permission_is_named(put):
    path = put(FILES["png"], "secret.png")
    path.chmod(0)
    assert "Permission denied" in reason(path)


@pytest.mark.parametrize("stem", ["Größe", "田んぼ", "поле 1", "a b'c", "x" * 251, "é" * 125])
def test_unicode_and_255_byte_file_names_are_read(stem, put):
    path = put(FILES["png"], f"{stem}.png")
    assert len(os.fsencode(path.name)) <= 255
    assert read_pixels(path).array.shape == (*SIZE, 3)


def test_too_long_file_name_is_named(tmp_path):
    assert "cannot be opened" in reason(tmp_path / f"{'x' * 300}.png")


# listing


def test_images_are_listed_sorted_without_dot_files_folders_and_others(tmp_path):
    for name in ("b.png", "a.JPG", ".c.png", "d.txt", "e.tif"):
        (tmp_path / name).touch()
    (tmp_path / "f.png").mkdir()
    (tmp_path / "f.png" / "inside.gif").touch()
    assert list_images(tmp_path) == [tmp_path / name for name in ("a.JPG", "b.png", "e.tif")]
    inside = tmp_path / "f.png" / "inside.gif"
    assert list_images(tmp_path, recursive=True) == [tmp_path / "a.JPG", tmp_path / "b.png", tmp_path / "e.tif", inside]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_links_are_followed_and_loops_end(tmp_path):
    inside, outside = tmp_path / "root" / "a", tmp_path / "elsewhere"
    inside.mkdir(parents=True), outside.mkdir()
    (inside / "1.png").touch(), (outside / "2.png").touch()
    (inside / "loop").symlink_to(tmp_path / "root"), (inside / "other").symlink_to(outside)
    (inside / "dead.png").symlink_to("nothing")
    assert list_images(tmp_path / "root", recursive=True) == [inside / "1.png", inside / "other" / "2.png"]


@pytest.mark.parametrize("recursive", [False, True])
def test_a_folder_that_cannot_be_listed_is_named(recursive, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: cannot be listed \(No such file"):
        list_images(tmp_path / "nowhere", recursive)


@pytest.mark.parametrize("at", [20, 45, -2])
def test_changed_byte_fails_the_checksum(at):
    """In the header, in the pixels, and in the end."""
    data = bytearray(png(30, 20, 8, 2, bytes(20 * 91)))
    data[at] ^= 1
    with pytest.raises(Unreadable, match="checksum"):
        decode.read(bytes(data))
