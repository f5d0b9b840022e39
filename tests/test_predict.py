import sys

import cv2
import jax
import numpy as np
import pytest
import tifffile
from flax import nnx
from image_files import write
from PIL import Image

from jaxseg import predict
from jaxseg.base.config import Config, Model
from jaxseg.base.errors import UserError
from jaxseg.data.read.masks import PALETTE
from jaxseg.data.read.samples import Reading
from jaxseg.doctor.classes import ClassMap
from jaxseg.inference import maps
from jaxseg.inference.predictor import Predictor
from jaxseg.learn import optimizers
from jaxseg.learn.step import normalize
from jaxseg.nn import unet
from jaxseg.runs.checkpoint import Checkpoints, Progress


def make_run(folder, how, **more):
    """A run folder whose network is not trained, and the network."""
    config = Config(model=Model(widths=(4, 8)))
    net = unet.unet_from(config.model, in_channels=how.channels, classes=len(how.labels.values), seed=3)
    optimizer = nnx.Optimizer(net, optimizers.adam(1e-3), wrt=nnx.Param)
    names = list(how.labels.names)
    description = {"classes": names, "in_channels": how.channels, "reading": how.to_dict()} | more
    description = {key: value for key, value in description.items() if value is not None}
    checkpoints = Checkpoints(folder, config, description)
    checkpoints.save("best", 1, net, optimizer, Progress(1))
    return nnx.view(net, use_running_average=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, make_run(folder, Reading(), tile=[9, 11])


@pytest.fixture
def images(tmp_path, rng):
    """Two images of different sizes, one with a name that is not ASCII."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, (h, w) in {"a.png": (16, 24), "ä.b.jpg": (9, 11)}.items():
        write(folder / name, rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
    return folder


def command(run, *inputs, out, more=()):
    return predict.main([str(run), *map(str, inputs), "-o", str(out), *more])


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@nnx.jit
def at_once(net, images):
    return jax.nn.softmax(net(normalize(images)))


def expected(net, image):
    return np.asarray(at_once(net, image[None]))[0]


def read(path):
    with Image.open(path) as found:
        found.load()
    return found


def test_class_maps_have_the_images_size_and_the_networks_classes(run, images, tmp_path, capsys):
    folder, net = run
    assert command(folder, images, out=tmp_path / "out") == 0
    assert files(tmp_path / "out") == {"a.png", "ä.b.png"}
    for name in ("a.png", "ä.b.jpg"):
        found = read((tmp_path / "out" / name).with_suffix(".png"))
        classes = expected(net, cv2.imread(str(images / name))).argmax(-1)
        assert found.mode == "P"
        np.testing.assert_array_equal(np.asarray(found), classes)
        np.testing.assert_array_equal(np.asarray(found.convert("RGB")), PALETTE[classes])
        assert set(np.unique(classes)) == {0, 1}, "a map of one class alone would show nothing"
    said = capsys.readouterr().out
    assert "2 class maps in" in said
    assert "megapixels/s" in said
    assert "classes 0 background" in said


def test_folders_are_searched_and_kept(run, images, tmp_path):

    write(images / "deep" / "er" / "a.png", np.zeros((8, 8, 3), np.uint8))
    write(images / ".hidden" / "a.png", np.zeros((8, 8, 3), np.uint8))
    (images / "notes.txt").write_text("no image")
    assert command(run[0], images, out=tmp_path / "out") == 0
    assert files(tmp_path / "out") == {"a.png", "ä.b.png", "deep/er/a.png"}


@pytest.mark.parametrize(
    ("inputs", "made"),
    [
        (["a.png"], {"a.png"}),
        (["a.png", "ä.b.jpg"], {"a.png", "ä.b.png"}),
        (["*.jpg"], {"ä.b.png"}),
        (["**/*.png"], {"a.png", "deep/c.png"}),
        (["deep"], {"c.png"}),
        (["a.png", "*.png"], {"a.png"}),
    ],
)
def test_inputs_are_files_folders_and_patterns(run, images, tmp_path, inputs, made):
    write(images / "deep" / "c.png", np.zeros((8, 8, 3), np.uint8))
    assert command(run[0], *(images / name for name in inputs), out=tmp_path / "out") == 0
    assert files(tmp_path / "out") == made


def test_a_folder_whose_name_is_a_pattern_is_a_folder(run, images, tmp_path):
    images.rename(tmp_path / "[a]*" if sys.platform != "win32" else tmp_path / "[a]")
    folder = next(p for p in tmp_path.iterdir() if p.name.startswith("["))
    assert command(run[0], folder, out=tmp_path / "out") == 0
    assert files(tmp_path / "out") == {"a.png", "ä.b.png"}


def test_what_an_earlier_run_wrote_is_no_input(run, images):
    out = images / "out"
    assert command(run[0], images, out=out) == 0
    assert command(run[0], images, out=out, more=["--overwrite"]) == 0
    assert files(out) == {"a.png", "ä.b.png"}


def test_class_maps_are_not_overwritten_unasked(run, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(run[0], images, out=out) == 0
    (out / "a.png").write_bytes(b"mine")
    assert command(run[0], images, out=out) == 2
    error = capsys.readouterr().err
    assert "a.png: exists; give --overwrite" in error
    assert "ä.b.png: exists; give --overwrite" in error
    assert (out / "a.png").read_bytes() == b"mine"
    assert command(run[0], images, out=out, more=["--overwrite"]) == 0
    assert read(out / "a.png").size == (24, 16)


def test_skip_existing_does_what_is_missing(run, images, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    assert command(run[0], images, out=out, more=["--skip-existing"]) == 0
    assert (out / "a.png").read_bytes() == b"mine"
    assert read(out / "ä.b.png").size == (11, 9)
    capsys.readouterr()
    assert command(run[0], images, out=out, more=["--skip-existing"]) == 0
    assert "0 class maps" in capsys.readouterr().out
    assert command(run[0], images, out=out, more=["--skip-existing", "--overlay"]) == 0
    assert files(out) == {"a.png", "ä.b.png", "overlays/a.png", "overlays/ä.b.png"}


def test_images_are_never_replaced_by_their_maps(run, images, capsys):
    before = (images / "a.png").read_bytes()
    assert command(run[0], images, out=images, more=["--overwrite"]) == 2
    assert "is an image itself" in capsys.readouterr().err
    assert (images / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda images: write(images / "a.jpg", np.zeros((8, 8, 3), np.uint8)),
            ["a.jpg", "a.png", "only in its suffix"],
        ),
        (lambda images: (images / "c.png").write_bytes(b""), ["c.png: is empty"]),
        (lambda images: [p.unlink() for p in images.iterdir()], ["no images in it; they end with .bmp"]),
        (
            lambda images: [(images / "c.png").write_bytes(b""), (images / "d.png").write_bytes(b"")],
            ["c.png: is empty", "d.png: is empty"],
        ),
    ],
)
def test_mistakes_are_all_listed_before_anything_is_written(run, images, tmp_path, capsys, change, says):
    change(images)
    assert command(run[0], images, out=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "Nothing was predicted." in error
    assert all(text in error for text in says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [("gone.png", "gone.png: no such file or folder"), ("x*.png", "x*.png: no images match")],
)
def test_inputs_without_images_are_named(run, images, tmp_path, capsys, given, says):
    assert command(run[0], images / given, images / "a.png", out=tmp_path / "out") == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("on_bad_file", ["error", "skip"])
def test_a_file_that_fails_to_decode_does_not_stop_the_others(run, images, tmp_path, capsys, on_bad_file):
    (images / "b.png").write_bytes((images / "a.png").read_bytes()[:100])
    tifffile.imwrite(images / "c.tif", np.zeros((9, 9, 5), np.uint8), planarconfig="contig")
    status = command(run[0], images, out=tmp_path / "out", more=["--on-bad-file", on_bad_file])
    said = capsys.readouterr()
    assert status == {"error": 2, "skip": 0}[on_bad_file]
    assert "2 of 4 images cannot be read; the other 2 are done" in said.err
    assert "b.png: is cut off" in said.err
    assert "c.tif: has 5 bands; expected 3 channels" in said.err
    assert files(tmp_path / "out") == {"a.png", "ä.b.png"}


def test_empty_files_may_be_skipped(run, images, tmp_path, capsys):
    (images / "c.png").write_bytes(b"")
    assert command(run[0], images, out=tmp_path / "out", more=["--on-bad-file", "skip"]) == 0
    assert "c.png: is empty" in capsys.readouterr().err
    assert files(tmp_path / "out") == {"a.png", "ä.b.png"}


def test_an_input_is_needed(run, tmp_path, capsys):
    assert command(run[0], out=tmp_path / "out") == 2
    assert "no INPUT given" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(images, tmp_path, capsys):
    assert command(images, images, out=tmp_path / "out") == 2
    assert str(images) in capsys.readouterr().err


def test_an_out_that_cannot_be_written_is_named(run, images, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert command(run[0], images, out=tmp_path / "out") == 2
    assert f"-o {tmp_path / 'out'}: cannot be written to" in capsys.readouterr().err


def test_debug_shows_the_traceback(run, tmp_path, capsys):
    assert command(run[0], tmp_path / "gone", out=tmp_path / "out", more=["--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_images_of_one_size_are_compiled_once(run, images, tmp_path, monkeypatch):
    for name in "cde":
        (images / f"{name}.png").write_bytes((images / "a.png").read_bytes())
    traced = []
    right = unet.UNet.__call__
    monkeypatch.setattr(unet.UNet, "__call__", lambda self, x, *rest: traced.append(x.shape) or right(self, x))
    assert command(run[0], images, out=tmp_path / "out") == 0
    assert sorted(traced) == [(1, 9, 11, 3), (1, 16, 24, 3)]


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_large_image_is_predicted_in_tiles(run, tmp_path, rng, compression):
    """Uncompressed it stays on disk."""
    folder, net = run
    image = rng.integers(0, 256, (150, 90, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "scene.tif", image, compression=compression)
    how = ["--tile", "32", "--overlap", "0.25", "--tta", "-b", "3", "--probabilities"]
    assert command(folder, tmp_path / "scene.tif", out=tmp_path / "out", more=how) == 0
    tiled = Predictor(net, Reading(), tile=32, overlap=0.25, tta=True, batch_size=3)
    p = tiled.probabilities(np.ascontiguousarray(image[..., ::-1]))
    np.testing.assert_array_equal(np.asarray(read(tmp_path / "out" / "scene.png")), p.argmax(-1))
    found = np.load(tmp_path / "out" / "probabilities" / "scene.npy")
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, p, atol=1e-3)


@pytest.fixture(scope="module")
def bands_run(tmp_path_factory):
    """A run on five bands of int16 with classes 3, 7 and 300, and -1 where there is no data."""
    folder = tmp_path_factory.mktemp("bands")
    labels = ClassMap((3, 7, 300), ("background", "wheat", "rape"), (99,))
    reading = Reading(labels, 5, dtype="int16", nodata=-1.0, normalize="dataset", mean=(0.1,) * 5, std=(0.2,) * 5)
    make_run(folder, reading)
    return folder


@pytest.fixture
def scene(tmp_path, rng):
    image = rng.integers(0, 20000, (40, 30, 5)).astype(np.int16)
    image[5:12, 20:] = -1
    image[20:, :5, 2] = -1  # in one band only: still data
    tifffile.imwrite(tmp_path / "scene.tif", image, planarconfig="contig", photometric="minisblack")
    return tmp_path / "scene.tif"


def test_pixels_without_data_are_ignored(bands_run, scene, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(bands_run, scene, out=out, more=["--probabilities", "--overlay", "--tile", "16"]) == 0
    empty = np.zeros((40, 30), bool)
    empty[5:12, 20:] = True
    classes = np.asarray(read(out / "scene.png"))
    np.testing.assert_array_equal(classes == 255, empty)
    assert set(np.unique(classes)) <= {0, 1, 2, 255}
    np.testing.assert_array_equal(np.isnan(np.load(out / "probabilities" / "scene.npy")).all(-1), empty)
    assert "70 pixels have no data" in capsys.readouterr().out


def test_values_are_those_of_the_masks(bands_run, scene, tmp_path):
    assert command(bands_run, scene, out=tmp_path / "classes") == 0
    assert command(bands_run, scene, out=tmp_path / "values", more=["--values"]) == 0
    classes = np.asarray(read(tmp_path / "classes" / "scene.png"))
    found = cv2.imread(str(tmp_path / "values" / "scene.png"), cv2.IMREAD_UNCHANGED)
    assert found.dtype == np.uint16
    table = np.zeros(256, int)
    table[[0, 1, 2, 255]] = 3, 7, 300, 99
    np.testing.assert_array_equal(found, table[classes])


@pytest.mark.parametrize(
    ("labels", "table"),
    [
        (ClassMap((0, 255), ("background", "field")), {0: 0, 1: 255, 255: 254}),
        (ClassMap((1, 2), ("a", "b")), {0: 1, 1: 2, 255: 255}),
        (ClassMap((1, 2), ("a", "b"), ignored=(0, 9)), {0: 1, 1: 2, 255: 0}),
        (
            ClassMap((0xFF0000, 0x00FF10), ("red", "green"), color=True),
            {0: (255, 0, 0), 1: (0, 255, 16), 255: (128,) * 3},
        ),
    ],
)
def test_the_table_of_values(labels, table):
    found = maps.value_table(labels)
    assert found.dtype == np.uint8
    for number, value in table.items():
        np.testing.assert_array_equal(found[number], value)


def test_values_that_no_png_holds_are_refused():
    with pytest.raises(UserError, match=r"--values: a PNG holds 0 to 65535, .*: far 70000$"):
        maps.value_table(ClassMap((0, 70000), ("near", "far")))


def test_colors_are_those_of_the_masks(tmp_path, rng):
    labels = ClassMap((0x102030, 0xFF8000), ("#102030", "#ff8000"), color=True)
    make_run(tmp_path / "run", Reading(labels))
    write(tmp_path / "a.png", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert command(tmp_path / "run", tmp_path / "a.png", out=tmp_path / "classes") == 0
    assert command(tmp_path / "run", tmp_path / "a.png", out=tmp_path / "values", more=["--values"]) == 0
    indexed, values = (read(tmp_path / kind / "a.png") for kind in ("classes", "values"))
    assert (indexed.mode, values.mode) == ("P", "RGB")
    np.testing.assert_array_equal(np.asarray(indexed.convert("RGB")), np.asarray(values))
    assert {tuple(c) for c in np.asarray(values).reshape(-1, 3)} == {(0x10, 0x20, 0x30), (0xFF, 0x80, 0)}


def test_an_overlay_is_half_image_and_half_classes_but_for_background(run, images, tmp_path):
    assert command(run[0], images / "a.png", out=tmp_path / "out", more=["--overlay"]) == 0
    classes = np.asarray(read(tmp_path / "out" / "a.png"))
    image = cv2.imread(str(images / "a.png"))[..., ::-1].astype(int)
    mixed = (image + PALETTE[classes]) / 2
    found = np.asarray(read(tmp_path / "out" / "overlays" / "a.png"))
    np.testing.assert_allclose(found, np.where(classes[..., None] == 0, image, mixed), atol=1)


def test_an_overlay_of_16_bits_is_stretched_and_a_large_one_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "OVERLAY_SIDE", 50)
    image = np.linspace(1000, 3000, 101 * 40).reshape(101, 40, 1).astype(np.uint16)
    maps.write_overlay(tmp_path / "x.png", image, np.zeros((101, 40), np.uint8), PALETTE, ["background"])
    found = np.asarray(read(tmp_path / "x.png"))
    assert found.shape == (34, 14, 3)
    assert (found[0] == 0).all()
    assert (found[-1] >= 254).all()
    assert abs(int(found[17, 7, 0]) - 130) < 8


def test_a_map_of_one_class_is_pointed_out(run, tmp_path, capsys):
    write(tmp_path / "a.png", np.zeros((16, 16, 3), np.uint8))
    assert command(run[0], tmp_path / "a.png", out=tmp_path / "out") == 0
    assert "every pixel is " in capsys.readouterr().out


def test_ctrl_c_leaves_whole_files_only(run, images, tmp_path, capsys, monkeypatch):
    right, calls = Predictor._blended, []

    def bands(self, image, tiles):
        calls.append(1)
        yield from right(self, image, tiles)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "_blended", bands)
    assert command(run[0], images, out=tmp_path / "out", more=["--probabilities"]) == 130
    assert "--skip-existing" in capsys.readouterr().err
    assert files(tmp_path / "out") == {"a.png", "probabilities/a.npy"}
    monkeypatch.undo()
    assert command(run[0], images, out=tmp_path / "out", more=["--probabilities", "--skip-existing"]) == 0
    assert files(tmp_path / "out") == {"a.png", "probabilities/a.npy", "ä.b.png", "probabilities/ä.b.npy"}


def test_out_of_memory_says_what_to_try(run, images, tmp_path, capsys, monkeypatch):
    def refuse(self, tiles, size):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")

    monkeypatch.setattr(Predictor, "_predict", refuse)
    assert command(run[0], images, out=tmp_path / "out") == 2
    assert "4 tiles of 512x512 at a time; try --batch-size 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--tile", "31"], "--tile is 31"), (["--overlap", "1"], "--overlap is 1"), (["-b", "0"], "--batch-size is 0")],
)
def test_flags_that_cannot_be(run, images, tmp_path, capsys, flags, says):
    assert command(run[0], images, out=tmp_path / "out", more=flags) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
