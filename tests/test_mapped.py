import numpy as np
import pytest
import tifffile

from jaxseg.base.errors import DataError
from jaxseg.data.read.mapped import Mapped, open_tile
from jaxseg.data.read.samples import Reading, read_tile


def noise(rng, dtype, *shape):
    return rng.integers(0, np.iinfo(dtype).max, shape).astype(dtype)


KINDS = {
    "color": (np.uint8, (40, 30, 3), {}, Reading()),
    "gray among color": (np.uint8, (40, 30), {}, Reading()),
    "strips": (np.uint8, (40, 30, 3), {"rowsperstrip": 7}, Reading()),
    "big-endian": (np.uint16, (40, 30), {"byteorder": ">"}, Reading(channels=1, dtype="uint16")),
    "planes": (np.int16, (5, 40, 30), {"planarconfig": "separate"}, Reading(channels=5, dtype="int16", nodata=7.0)),
    "some bands": (np.int16, (40, 30, 5), {"planarconfig": "contig"}, Reading(channels=2, bands=(4, 1), dtype="int16")),
    "white is 0": (np.uint8, (40, 30), {"photometric": "miniswhite"}, Reading(channels=1)),
    "BigTIFF": (np.uint8, (40, 30, 3), {"bigtiff": True}, Reading()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_window_equals_reading_the_whole_file(tmp_path, rng, kind):
    dtype, shape, how, reading = KINDS[kind]
    pixels = noise(rng, dtype, *shape)
    pixels[..., 10:20] = 7
    how = {"photometric": "rgb" if shape[-1] == 3 else "minisblack"} | how
    tifffile.imwrite(tmp_path / "x.tif", pixels, **how)
    mapped, read = open_tile(tmp_path / "x.tif", reading), read_tile(tmp_path / "x.tif", reading)
    for lazy, array in zip(mapped, read):
        assert isinstance(lazy, Mapped)
        assert (lazy.shape, lazy.dtype) == (array.shape, array.dtype)
        for where in (np.s_[:, :], np.s_[5:17, 20:], np.s_[::3, ::3]):
            np.testing.assert_array_equal(lazy[where], array[where])
    assert read[1].all() == (kind != "planes"), "only one kind has pixels without data"


@pytest.mark.parametrize("how", [{"compression": "zlib"}, {"tile": (16, 16)}, {"extratags": [(274, "H", 1, 6, True)]}])
def test_compressed_tiled_and_rotated_files_are_not_mapped(tmp_path, rng, how):
    tifffile.imwrite(tmp_path / "x.tif", noise(rng, np.uint8, 40, 30, 3), photometric="rgb", **how)
    image, has_data = open_tile(tmp_path / "x.tif", Reading())
    assert isinstance(image, np.ndarray)
    assert has_data.all()
    np.testing.assert_array_equal(image, read_tile(tmp_path / "x.tif", Reading())[0])


def test_truncated_file_is_refused(tmp_path, rng):
    tifffile.imwrite(tmp_path / "x.tif", noise(rng, np.uint8, 40, 30, 3))
    (tmp_path / "x.tif").write_bytes((tmp_path / "x.tif").read_bytes()[:-1])
    with pytest.raises(DataError, match="is cut off"):
        open_tile(tmp_path / "x.tif", Reading())


def test_channels_and_dtype_are_checked_on_opening(tmp_path, rng):
    tifffile.imwrite(tmp_path / "x.tif", noise(rng, np.uint8, 40, 30, 5), planarconfig="contig")
    with pytest.raises(DataError, match="has 5 bands; expected 3 channels"):
        open_tile(tmp_path / "x.tif", Reading())


def test_file_that_disappears_is_named(tmp_path, rng):
    tifffile.imwrite(tmp_path / "x.tif", noise(rng, np.uint8, 40, 30, 3))
    image, _ = open_tile(tmp_path / "x.tif", Reading())
    (tmp_path / "x.tif").unlink()
    with pytest.raises(DataError, match=r"x\.tif: can no longer be read"):
        image[:5, :5]
