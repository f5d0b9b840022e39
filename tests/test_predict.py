import cv2
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jaxseg import model, optim, predict
from jaxseg.checkpoint import Checkpoints, Progress
from jaxseg.config import Config, Model
from jaxseg.pictures import PALETTE
from jaxseg.step import normalize


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder whose network is not trained."""
    folder = tmp_path_factory.mktemp("run")
    config = Config(model=Model(widths=(4, 8)))
    net = model.build(config.model, in_channels=3, classes=2, seed=3)
    optimizer = nnx.Optimizer(net, optim.adam(1e-3), wrt=nnx.Param)
    checkpoints = Checkpoints(folder, config, {"classes": ["background", "field"], "in_channels": 3})
    checkpoints.save("best", 1, net, optimizer, Progress(1))
    checkpoints.close()
    return folder, nnx.view(net, use_running_average=True)


@pytest.fixture
def images(tmp_path, rng):
    """Two images of different sizes, one with a name that is not ASCII."""
    folder = tmp_path / "images"
    folder.mkdir()
    sizes = {"a.png": (16, 24), "ä.b.jpg": (9, 11)}
    for name, (h, w) in sizes.items():
        pixels = cv2.imencode(name[-4:], rng.integers(0, 256, (h, w, 3), dtype=np.uint8))[1]
        (folder / name).write_bytes(pixels.tobytes())
    return folder


def test_class_maps_have_the_images_size_and_the_networks_classes(run, images, tmp_path):
    folder, net = run
    assert predict.main([str(folder), str(images), "-o", str(tmp_path / "out")]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.png", "ä.b.png"}
    with Image.open(tmp_path / "out" / "a.png") as found:
        found.load()
    expected = np.asarray(net(normalize(cv2.imread(str(images / "a.png"))[None]))).argmax(-1)[0]
    assert found.mode == "P"
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert set(np.unique(expected)) == {0, 1}, "a map of one class alone would show nothing"
    np.testing.assert_array_equal(np.asarray(found.convert("RGB")), PALETTE[expected])


def test_a_single_file_is_an_input(run, images, tmp_path):
    assert predict.main([str(run[0]), str(images / "a.png"), "-o", str(tmp_path / "out")]) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]


def test_class_maps_are_not_overwritten_unasked(run, images, tmp_path, capsys):
    command = [str(run[0]), str(images), "-o", str(tmp_path / "out")]
    assert predict.main(command) == 0
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    assert predict.main(command) == 2
    error = capsys.readouterr().err
    assert "a.png: exists" in error
    assert "ä.b.png: exists" in error
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"
    assert predict.main([*command, "--overwrite"]) == 0
    assert cv2.imread(str(tmp_path / "out" / "a.png")).shape == (16, 24, 3)


def test_images_are_never_replaced_by_their_maps(run, images, capsys):
    before = (images / "a.png").read_bytes()
    assert predict.main([str(run[0]), str(images), "-o", str(images), "--overwrite"]) == 2
    assert "is the image itself" in capsys.readouterr().err
    assert (images / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda images: (images / "a.jpg").write_bytes((images / "a.png").read_bytes()), "same stem"),
        (lambda images: (images / "c.png").write_bytes(b"no image"), "cannot decode"),
        (lambda images: cv2.imwrite(str(images / "c.png"), np.zeros((1, 5, 3), np.uint8)), "needs 2 pixels"),
        (lambda images: [p.unlink() for p in images.iterdir()], "no images"),
    ],
)
def test_mistakes_exit_with_2_and_say_which_file(run, images, tmp_path, capsys, change, says):
    change(images)
    assert predict.main([str(run[0]), str(images), "-o", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(images, tmp_path, capsys):
    assert predict.main([str(images), str(images), "-o", str(tmp_path / "out")]) == 2
    assert str(images) in capsys.readouterr().err


def test_images_of_one_size_are_compiled_once(run, images, tmp_path, monkeypatch):
    for name in "cde":
        (images / f"{name}.png").write_bytes((images / "a.png").read_bytes())
    traced = []
    right = model.UNet.__call__
    monkeypatch.setattr(model.UNet, "__call__", lambda self, x, valid=None: traced.append(x.shape) or right(self, x))
    assert predict.main([str(run[0]), str(images), "-o", str(tmp_path / "out")]) == 0
    assert sorted(traced) == [(1, 9, 11, 3), (1, 16, 24, 3)]
