"""Rasters with coordinates read by windows as whole files are read."""

import sys

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")

from rasterio.transform import from_origin  # noqa: E402

from jaxseg.base import extra  # noqa: E402
from jaxseg.base.errors import DataError, UserError  # noqa: E402
from jaxseg.data.read.samples import Reading, read_tile  # noqa: E402
from jaxseg.geo import raster  # noqa: E402
from jaxseg.geo.raster import Scene, as_read, open_placed  # noqa: E402

UTM = from_origin(4e5, 5e6, 0.5, 0.5)
BANDS = Reading(channels=4, dtype="uint16", order="bands")


def make(path, bands, **more):
    """Writes bands [c h w] as a GeoTIFF in UTM 33N, with what `more` adds to the profile."""
    colors, mask = more.pop("colors", None), more.pop("mask", None)
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "dtype": bands.dtype, "crs": "EPSG:32633", "transform": UTM} | more
    with rasterio.open(path, "w", count=count, height=height, width=width, **profile) as file:
        if colors:
            file.write_colormap(1, colors)
        file.write(bands)
        if mask is not None:
            file.write_mask(mask)
    return path


def noise(rng, *shape, dtype="uint8"):
    return rng.integers(1, np.iinfo(dtype).max, shape, dtype=dtype)


KINDS = {
    "uint16 bands": (Reading(channels=4, dtype="uint16", order="bands"), "uint16", 4, {}),
    "one band asked for": (Reading(channels=1, bands=(3,), dtype="uint16", order="bands"), "uint16", 4, {}),
    "nodata": (Reading(channels=2, dtype="int16", order="bands"), "int16", 2, {"nodata": -9}),
    "color": (Reading(), "uint8", 3, {"photometric": "RGB"}),
    "color with infrared": (
        Reading(channels=4, order="bands"),
        "uint8",
        4,
        {"photometric": "RGB", "alpha": "unspecified"},
    ),
    "color as bands": (Reading(order="bands"), "uint8", 3, {"photometric": "RGB"}),
    "gray": (Reading(channels=1, order="bands"), "uint8", 1, {}),
    "gray for a color network": (Reading(), "uint8", 1, {}),
    "palette": (Reading(), "uint8", 1, {"colors": {i: (i, 255 - i, i // 2, 255) for i in range(256)}}),
    "white is zero": (Reading(channels=1), "uint8", 1, {"photometric": "MINISWHITE"}),
    "strips and deflate": (Reading(channels=5, dtype="uint16"), "uint16", 5, {"compress": "deflate"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_windows_hold_what_the_whole_file_holds(tmp_path, rng, kind):
    reading, dtype, count, more = KINDS[kind]
    bands = noise(rng, count, 40, 23, dtype=dtype)
    bands[:, 5:9] = -9 if dtype == "int16" else bands[:, 5:9]
    path = make(tmp_path / "a.tif", bands, **more)
    image, has_data = read_tile(path, reading)
    with Scene(path) as scene:
        windows, mask = as_read(scene, reading)
        assert windows.shape == image.shape
        assert windows.dtype == image.dtype
        for rows, columns in ((slice(None), slice(None)), (slice(3, 21), slice(7, 99)), (slice(0, 40, 3), slice(1, 5))):
            np.testing.assert_array_equal(windows[rows, columns], image[rows, columns])
            np.testing.assert_array_equal(mask[rows, columns], has_data[rows, columns])
    assert has_data.all() == ("nodata" not in more)


@pytest.mark.parametrize("beside", [False, True])
def test_a_mask_in_the_file_or_beside_it_counts(tmp_path, rng, beside):
    mask = rng.random((30, 20)) > 0.3
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=not beside):
        path = make(tmp_path / "a.tif", noise(rng, 4, 30, 20, dtype="uint16"), mask=mask)
    assert (tmp_path / "a.tif.msk").exists() == beside
    with Scene(path) as scene:
        image, has_data = as_read(scene, BANDS)
        np.testing.assert_array_equal(has_data[:, :], mask)
        np.testing.assert_array_equal(image[:, :], read_tile(path, BANDS)[0])


def test_an_alpha_that_the_network_does_not_read_is_the_mask(tmp_path, rng):
    bands = noise(rng, 4, 30, 20)
    bands[3, :10] = 0
    path = make(tmp_path / "a.tif", bands, photometric="RGB", alpha="yes")
    with Scene(path) as scene:
        assert scene.color
        image, has_data = as_read(scene, Reading())
        assert image.shape == (30, 20, 3)
        np.testing.assert_array_equal(image[10:, :], np.moveaxis(bands[2::-1, 10:], 0, -1))
        np.testing.assert_array_equal(has_data[:, :], bands[3] > 0)
        image, has_data = as_read(scene, Reading(channels=4, order="bgr"))
        assert image.shape == (30, 20, 4)
        assert has_data[:, :].all()


def test_nodata_that_differs_between_bands_masks_where_all_bands_have_none(tmp_path, rng):
    bands = noise(rng, 2, 8, 8, dtype="uint16")
    bands[0, :4], bands[1, :2] = 1, 2
    make(tmp_path / "a.tif", bands[:1], nodata=1)
    make(tmp_path / "b.tif", bands[1:], nodata=2)
    sources = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{i}"><NoDataValue>{i}</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{name}.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand>"
        for i, name in ((1, "a"), (2, "b"))
    )
    (tmp_path / "c.vrt").write_text(f'<VRTDataset rasterXSize="8" rasterYSize="8">{sources}</VRTDataset>')
    with Scene(tmp_path / "c.vrt") as scene:
        assert scene.nodata is None
        _, has_data = as_read(scene, Reading(channels=2, dtype="uint16"))
        np.testing.assert_array_equal(has_data[:, :], (bands[0] != 1) | (bands[1] != 2))


def test_a_world_file_beside_a_png_counts_and_a_png_alone_does_not(tmp_path, rng):
    cv2.imwrite(str(tmp_path / "a.png"), noise(rng, 8, 8, 3))
    assert open_placed(tmp_path / "a.png") is None
    (tmp_path / "a.pgw").write_text("0.5\n0\n0\n-0.5\n1000.25\n1999.75\n")
    with open_placed(tmp_path / "a.png") as scene:
        assert scene.crs is None
        assert scene.bounds == (1000, 1996, 1004, 2000)
        np.testing.assert_array_equal(as_read(scene, Reading())[0][:, :], cv2.imread(str(tmp_path / "a.png")))


def test_jpeg_2000_with_coordinates_is_a_scene(tmp_path, rng):
    bands = noise(rng, 4, 64, 48, dtype="uint16")
    path = make(tmp_path / "a.jp2", bands, driver="JP2OpenJPEG", reversible=True, quality=100)
    with open_placed(path) as scene:
        assert scene.crs.to_epsg() == 32633
        np.testing.assert_array_equal(as_read(scene, BANDS)[0][10:20, 5:30], np.moveaxis(bands[:, 10:20, 5:30], 0, -1))


@pytest.mark.parametrize(
    ("transform", "bounds"),
    [
        (UTM, (4e5, 4999990, 400005, 5e6)),
        (rasterio.Affine(0.5, 0, 10, 0, 0.5, 20), (10, 20, 15, 30)),
        (rasterio.Affine(0, 2, 10, 3, 0, 20), (10, 20, 50, 50)),
    ],
    ids=["north up", "south up", "turned"],
)
def test_bounds_of_any_transform(tmp_path, rng, transform, bounds):
    path = make(tmp_path / "a.tif", noise(rng, 1, 20, 10), transform=transform)
    with open_placed(path) as scene:
        assert scene.transform == transform
        assert scene.bounds == bounds


def test_plain_images_other_files_and_damaged_ones_are_not_placed(tmp_path, rng):
    tifffile.imwrite(tmp_path / "a.tif", noise(rng, 8, 8))
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.tif").write_bytes(b"II*\0no picture")
    assert [open_placed(tmp_path / name) for name in ("a.tif", "a.png", "b.tif")] == [None] * 3


def test_damage_inside_names_the_file(tmp_path, rng):
    path = make(tmp_path / "a.tif", noise(rng, 1, 64, 64), tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[-1]
    data[start : start + 60] = bytes(60)
    path.write_bytes(data)
    with Scene(path) as scene, pytest.raises(DataError, match=r"a\.tif: cannot be read as a raster"):
        scene[:, :]


def test_bands_of_complex_numbers_are_refused(tmp_path):
    path = make(tmp_path / "a.tif", np.ones((1, 4, 4), np.complex64))
    with pytest.raises(DataError, match="complex64; expected bands of one type"):
        Scene(path)


def test_the_cache_grows_with_the_width_up_to_a_limit(tmp_path, rng):
    path = make(tmp_path / "a.tif", noise(rng, 1, 4, 4))
    with Scene(path) as scene:
        assert raster.cache_for(scene, 512) == raster.CACHE
        scene.shape = (40_000, 40_000, 4)
        assert raster.CACHE < raster.cache_for(scene, 1024) < raster.MOST_CACHE
        scene.shape = (40_000, 10**6, 4)
        assert raster.cache_for(scene, 512) == raster.MOST_CACHE


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == "rasterio" else object())
    with pytest.raises(UserError, match=r"^--vector needs rasterio: pip install 'jaxseg\[geo\]'$"):
        extra.require("geo", "--vector")
