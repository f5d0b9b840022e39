"""Decodes pictures in memory: PNG, JPEG, WebP, BMP, PNM and JPEG 2000 by OpenCV, palettes and GIF by Pillow.

A file's first bytes decide its format, not its name. Some decoders return half a picture for a truncated file without
an error. PNG chunks (checksums and end) and JPEG markers are therefore checked first. The decoders of other formats
check themselves. Pillow's errors, which are of any type, pass: `images.read_pixels` names the file.
"""

import contextlib
import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import BmpImagePlugin, GifImagePlugin, Jpeg2KImagePlugin, PngImagePlugin, PpmImagePlugin, WebPImagePlugin
from PIL.Image import Exif
from PIL.ImageFile import ImageFile

from jaxseg.data.read.pixels import Pixels

# Silences OpenCV's log: our errors name the fault. cv2.setLogLevel is the name in OpenCV 4.
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)

MOST_PIXELS, LONGEST_SIDE = 2**30, 2**20  # OpenCV's limits
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
PLUGINS: dict[bytes, type[ImageFile]] = {
    PNG: PngImagePlugin.PngImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"GIF8": GifImagePlugin.GifImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    b"\0\0\0\x0cjP  ": Jpeg2KImagePlugin.Jpeg2KImageFile,
    b"\xff\x4f\xff\x51": Jpeg2KImagePlugin.Jpeg2KImageFile,
    **{b"P%d" % i: PpmImagePlugin.PpmImageFile for i in range(1, 7)},
}
"""Pillow's header reader by a file's first bytes. Called directly, it sets no limit on the size."""

_CHUNK, _CHECKSUM = struct.Struct(">I4s").unpack_from, struct.Struct(">I").unpack_from
_PNG_HEADER = struct.Struct(">IIBB").unpack_from  # width, height, bits, color type
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # without stuffed zeros, fill bytes and restart markers


class Unreadable(ValueError):
    """Reason why a file's pixels cannot be read, without the file's name."""


class Header(NamedTuple):
    """Picture header, read before the pixels."""

    width: int
    height: int
    bits: int = 8
    """Bits per sample, at most 8; deeper samples count as 8."""
    alpha: bool = False
    palette: bool = False
    orientation: int = 1
    """EXIF's, 1 to 8."""


def read(data: bytes, indices: bool = False) -> Pixels:
    """Decodes a picture to pixels [h w c], uint8 or uint16, with EXIF's orientation applied.

    Channels are gray, or blue, green, red and, if present, alpha. With `indices`, a palette picture gives palette
    indices instead of colors, and samples of fewer than 8 bits stay as stored. Raises Unreadable.
    """
    header, data = _open(data)
    if header.palette and (indices or data.startswith(b"GIF8")):
        pixels = _pillow(data, indices)
    else:
        pixels = _opencv(data, header.alpha)
        if header.alpha and pixels.ndim == 3 and pixels.shape[2] == 4 and _is_gray_and_opaque(pixels):
            pixels = pixels[..., :1]
        if indices and header.bits < 8:
            pixels = pixels // (255 // (2**header.bits - 1))
    pixels = turn(np.atleast_3d(pixels), header.orientation)
    return Pixels(pixels, None, color=pixels.shape[2] >= 3, orientation=header.orientation)


def palette(data: bytes) -> UInt8[np.ndarray, "n 3"] | None:
    """Returns the palette, uint8 [n 3] RGB, or None if the picture has none. Raises Unreadable."""
    header, data = _open(data)
    if not header.palette:
        return None
    colors = _plugin(data).getpalette()
    return None if colors is None else np.array(colors, np.uint8).reshape(-1, 3)


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels [h w ...] upright, by the orientation of EXIF or TIFF, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _open(data: bytes) -> tuple[Header, bytes]:
    """Returns the header, and the bytes to decode."""
    if data.startswith(PNG):
        header, data = check_png(data)
    elif data.startswith(JPEG):
        header = _jpeg_header(data)
    else:
        picture = _plugin(data)
        gif = picture.format == "GIF"  # its transparency is about the frame before, not alpha
        alpha = not gif and (picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info)
        bits = 1 if picture.mode == "1" else 8
        header = Header(*picture.size, bits, alpha, picture.mode == "P" or gif, _orientation(picture.info.get("exif")))
    _check_size(header, data)
    return header, data


def check_png(data: bytes) -> tuple[Header, bytes]:
    """Returns the header of a PNG, and the file without chunks that change no pixel: libpng warns about some.

    Raises Unreadable if a chunk is cut off, missing, or fails its checksum.
    """
    view, kept, kinds, exif = memoryview(data), [data[: len(PNG)]], [], None
    for kind, at, end in _chunks(data):
        if kind == b"IDAT" or not kind[0] & 0x20 or kind in (b"tRNS", b"eXIf"):
            if zlib.crc32(view[at + 4 : end - 4]) != _CHECKSUM(data, end - 4)[0]:
                raise Unreadable(f"is damaged: the checksum of the chunk at byte {at} is wrong")
            kept.append(view[at:end])
            exif = data[at + 8 : end - 4] if kind == b"eXIf" else exif
        kinds.append(kind)
    if kinds[0] != b"IHDR" or b"IDAT" not in kinds or len(kept[1]) != 25:
        raise Unreadable("is an incomplete PNG: the header or the pixels are missing")
    width, height, bits, color = _PNG_HEADER(data, 16)
    alpha = color in (4, 6) or (color == 3 and b"tRNS" in kinds)
    header = Header(width, height, min(bits, 8), alpha, color == 3, _orientation(exif))
    return header, data if len(kept) == len(kinds) + 1 else b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields type, first byte and end of each chunk, up to IEND. Raises Unreadable if one is cut off."""
    at, size, kind = len(PNG), len(data), b""
    while kind != b"IEND":  # usually about 16 chunks: libpng writes 8 KiB in each
        if at + 12 > size:
            raise Unreadable(f"is cut off after {size} bytes: a PNG ends with IEND")
        length, kind = _CHUNK(data, at)
        end = at + 12 + length
        if end > size:
            raise Unreadable(f"is cut off after {size} bytes, in a chunk that ends at {end}")
        yield kind, at, end
        at = end


def _jpeg_header(data: bytes) -> Header:
    """Returns the header of a JPEG. Raises Unreadable if the end of the picture is missing."""
    at, size, exif = 2, None, None
    while (marker := _MARKER.search(data, at)) and (code := marker[1][0]) != 0xD9:
        at = marker.end()
        if code in (0x01, 0xD8):  # markers without a length
            continue
        length = int.from_bytes(data[at : at + 2])
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC) and at + 7 <= len(data):
            size = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 3 : at + 5])
        if code == 0xE1 and exif is None and data[at + 2 : at + 8] == b"Exif\0\0":
            exif = data[at + 2 : at + length]
        at += max(length, 2)
    if marker is None:
        raise Unreadable(f"is cut off after {len(data)} bytes: a JPEG ends with the bytes FF D9")
    if size is None:
        raise Unreadable("is an incomplete JPEG: the frame header is missing")
    return Header(*size, orientation=_orientation(exif))


def _plugin(data: bytes) -> ImageFile:
    plugin = next((plugin for magic, plugin in PLUGINS.items() if data.startswith(magic)), None)
    if plugin is None:
        known = "PNG, JPEG, TIFF, WebP, BMP, PGM, PPM, JPEG 2000 or GIF"
        raise Unreadable(f"is not a picture: it begins with {data[:8]!r}; expected {known}")
    return plugin(io.BytesIO(data))


def _check_size(header: Header, data: bytes) -> None:
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise Unreadable(f"has no pixels: it is {width}x{height}")
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        most = "2^30 pixels and 2^20 on a side"
        raise Unreadable(f"claims {width}x{height} pixels; expected at most {most}: cut it into tiles")
    # Upper bounds of compression: deflate 1032, GIF's LZW 2731.
    dense = {PNG[:4]: 1040 * 8 / header.bits, b"GIF8": 2800}.get(data[:4])
    if dense is not None and width * height > dense * len(data):
        raise Unreadable(f"claims {width}x{height} pixels, which {len(data)} bytes cannot hold")


def _opencv(data: bytes, alpha: bool) -> np.ndarray:
    """Decodes to [h w] or [h w c] as stored, not turned; without `alpha` an alpha is dropped."""
    how = cv2.IMREAD_UNCHANGED if alpha else cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error as error:
        raise Unreadable(f"cannot be decoded ({error.err})") from None
    if pixels is None:
        raise Unreadable(f"is damaged or of an unsupported kind: OpenCV cannot decode its {len(data)} bytes")
    return pixels


def _pillow(data: bytes, indices: bool) -> np.ndarray:
    picture = _plugin(data)
    if getattr(picture, "n_frames", 1) > 1:
        raise Unreadable(f"is an animation of {picture.n_frames} frames; expected one")
    pixels = np.array(picture if indices else picture.convert("RGB"))
    return pixels if pixels.ndim == 2 else pixels[..., ::-1]


def _orientation(exif: bytes | None) -> int:
    """Returns the orientation in EXIF's bytes; 1 if there is none, or they are damaged, as decoders do."""
    if not exif:
        return 1
    tags = Exif()
    with contextlib.suppress(Exception):  # Pillow raises errors of any type
        tags.load(exif)
        return int(tags.get(0x0112, 1))
    return 1


def _is_gray_and_opaque(pixels: np.ndarray) -> bool:
    blue, green, red, alpha = np.moveaxis(pixels, -1, 0)
    return bool((alpha == np.iinfo(pixels.dtype).max).all() and (blue == green).all() and (green == red).all())
