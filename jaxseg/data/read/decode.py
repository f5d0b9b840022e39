"""Pictures in memory -> pixels: PNG, JPEG, WebP, BMP, PNM and JPEG 2000 by OpenCV, palettes and GIF by Pillow.

What a file is follows from its content, never from its name. Decoders that meet a truncated file may give the half that
is there and say nothing, so the ends and checksums of PNG and the markers of JPEG are looked at first; the other
formats' decoders do it themselves.
"""

import contextlib
import io
import re
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import BmpImagePlugin, GifImagePlugin, Jpeg2KImagePlugin, PngImagePlugin, PpmImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from jaxseg.data.read import png
from jaxseg.data.read.header import Header, Unreadable

# What OpenCV has to say about a file is in our errors. The first name is that of OpenCV 4.
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)

MOST_PIXELS, LONGEST_SIDE = 2**30, 2**20  # OpenCV's limits
JPEG = b"\xff\xd8\xff"
PLUGINS: dict[bytes, type[ImageFile]] = {
    png.SIGNATURE: PngImagePlugin.PngImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"GIF8": GifImagePlugin.GifImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    b"\0\0\0\x0cjP  ": Jpeg2KImagePlugin.Jpeg2KImageFile,
    b"\xff\x4f\xff\x51": Jpeg2KImagePlugin.Jpeg2KImageFile,
    **{b"P%d" % i: PpmImagePlugin.PpmImageFile for i in range(1, 7)},
}
"""First bytes of a file, and Pillow's reader of its header. Called directly, it has no opinion on the size."""

_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # without stuffed zeros, fill bytes and restart markers


def read(data: bytes, indices: bool = False) -> Shaped[np.ndarray, "h w c"]:
    """Pixels [h w c], uint8 or uint16: gray, or blue, green, red and, where there is one, alpha; EXIF's orientation
    is applied.

    With `indices` a palette's numbers come instead of its colors, and samples of fewer than 8 bits as they are stored.
    Raises Unreadable.
    """
    header, data = _open(data)
    if header.palette and (indices or data.startswith(b"GIF8")):
        return _pillow(data, indices)
    # ANYCOLOR drops an alpha, UNCHANGED keeps it but does not apply the orientation.
    how = cv2.IMREAD_UNCHANGED if header.alpha else cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
    pixels = _opencv(png.inflate(data) if data.startswith(png.SIGNATURE) else data, how)
    if header.alpha:
        pixels = turn(pixels, _orientation(data))
        if pixels.ndim == 3 and pixels.shape[2] == 4 and _is_gray_and_opaque(pixels):
            pixels = pixels[..., :1]
    if indices and header.bits < 8:
        pixels = pixels // (255 // (2**header.bits - 1))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def palette(data: bytes) -> UInt8[np.ndarray, "n 3"] | None:
    """Its colors, RGB, or None. Raises Unreadable."""
    header, data = _open(data)
    if not header.palette:
        return None
    with _pillow_says():
        colors = _plugin(data).getpalette()
    return None if colors is None else np.array(colors, np.uint8).reshape(-1, 3)


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [h w ...] as they are meant to be seen, by EXIF's (or TIFF's) number from 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _open(data: bytes) -> tuple[Header, bytes]:
    """The header, and what is to be decoded."""
    if data.startswith(png.SIGNATURE):
        header, data = png.check(data)
    elif data.startswith(JPEG):
        header = _jpeg_header(data)
    else:
        picture = _plugin(data)
        gif = picture.format == "GIF"  # whose transparency says what to leave of the picture before
        alpha = not gif and (picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info)
        header = Header(*picture.size, 1 if picture.mode == "1" else 8, alpha, picture.mode == "P" or gif)
    _check_size(header, data)
    return header, data


def _jpeg_header(data: bytes) -> Header:
    """Raises Unreadable when the end of the picture is not there."""
    at, size = 2, None
    while (marker := _MARKER.search(data, at)) and (code := marker[1][0]) != 0xD9:
        at = marker.end()
        if code in (0x01, 0xD8):  # have no length
            continue
        length = int.from_bytes(data[at : at + 2])
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC) and at + 7 <= len(data):
            size = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 3 : at + 5])
        at += max(length, 2)
    if marker is None:
        raise Unreadable(f"is cut off after {len(data)} bytes: a JPEG ends with the bytes FF D9")
    if size is None:
        raise Unreadable("is no whole JPEG: it has no header of a picture")
    return Header(*size)


def _plugin(data: bytes) -> ImageFile:
    plugin = next((plugin for magic, plugin in PLUGINS.items() if data.startswith(magic)), None)
    if plugin is None:
        known = "PNG, JPEG, TIFF, WebP, BMP, PGM, PPM, JPEG 2000 or GIF"
        raise Unreadable(f"is no picture: it begins with {data[:8]!r}, not as {known}")
    with _pillow_says():
        return plugin(io.BytesIO(data))


def _check_size(header: Header, data: bytes) -> None:
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise Unreadable(f"has no pixels: it is {width}x{height}")
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        most = "2^30, or 2^20 on a side,"
        raise Unreadable(f"claims {width}x{height} pixels; more than {most} cannot be read: cut it into tiles")
    # What a byte can hold at most: of deflate 1032, of GIF's LZW 2731.
    dense = {png.SIGNATURE[:4]: 1040 * 8 / header.bits, b"GIF8": 2800}.get(data[:4])
    if dense is not None and width * height > dense * len(data):
        raise Unreadable(f"claims {width}x{height} pixels, which {len(data)} bytes cannot hold")


def _opencv(data: bytes, how: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error as error:
        raise Unreadable(f"cannot be decoded ({error.err})") from None
    if pixels is None:
        raise Unreadable(f"is damaged or of an unknown kind: OpenCV cannot decode its {len(data)} bytes")
    return pixels


def _pillow(data: bytes, indices: bool) -> np.ndarray:
    picture = _plugin(data)
    if getattr(picture, "n_frames", 1) > 1:
        raise Unreadable(f"is an animation of {picture.n_frames} pictures; expected one")
    with _pillow_says():
        pixels = np.array(picture if indices else picture.convert("RGB"))
    pixels = turn(pixels, _orientation(data))
    return pixels[..., None] if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])


def _orientation(data: bytes) -> int:
    with _pillow_says():
        return _plugin(data).getexif().get(0x0112, 1)


@contextlib.contextmanager
def _pillow_says() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever a broken file leads to
        raise Unreadable(f"is damaged: {error or type(error).__name__}") from None


def _is_gray_and_opaque(pixels: np.ndarray) -> bool:
    blue, green, red, alpha = np.moveaxis(pixels, -1, 0)
    return bool((alpha == np.iinfo(pixels.dtype).max).all() and (blue == green).all() and (green == red).all())
