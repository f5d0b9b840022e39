"""What users of such trainers complain about most: what is put in, what is said, and the exit status.

Every test goes through a command, as a user would.
"""

import contextlib
import io
import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest
import tifffile
from image_files import write
from PIL import Image

from jaxseg import check, convert_labels, evaluate, predict, train
from jaxseg.base.config import Model
from jaxseg.data.read.images import read_pixels
from jaxseg.data.read.masks import read_values
from jaxseg.nn import unet
from jaxseg.nn.torch_weights import to_torch
from jaxseg.training import assembly, loop

DRY = ["--widths", "2", "4", "-b", "2", "--workers", "0", "--dry-run"]
TINY = ["--widths", "2", "4", "-e", "1", "-b", "2", "--workers", "0", "--no-augment"]


@pytest.fixture(autouse=True)
def own_cache(undrawn, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(tmp_path / "cache"))


def command(module, *argv) -> SimpleNamespace:
    """Exit status and all output of a command, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = module.main([str(arg) for arg in argv])
    text = out.getvalue() + err.getvalue()
    assert "Traceback" not in text
    return SimpleNamespace(code=code, text=text, words=" ".join(text.split()))


def picture(height=16, width=16, seed=0, channels=3, dtype=np.uint8) -> np.ndarray:
    most = 256 if dtype == np.uint8 else 3000
    return np.random.default_rng(seed).integers(0, most, (height, width, channels)).astype(dtype)


def mask(height=16, width=16, values=(0, 255)) -> np.ndarray:
    """Columns of the values, in turn."""
    return np.tile(np.array(values, np.uint8)[np.arange(width) * len(values) // width], (height, 1))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five good pairs."""
    for i in range(5):
        write(tmp_path / f"data/images/a{i}.png", picture(seed=i))
        write(tmp_path / f"data/masks/a{i}.png", mask())
    return tmp_path / "data"


@pytest.fixture
def trains(tmp_path):
    """Trains for an epoch and returns what it said."""
    return lambda root, *argv: command(train, "--data", root, "--out", tmp_path / "run", *TINY, *argv)


@pytest.fixture
def plans(trains):
    """Reads the data as `trains` does, says the same, and takes no step."""
    return lambda root, *argv: trains(root, "--dry-run", *argv)


@pytest.mark.parametrize(("suffix", "said"), [("_label", "a3.png"), ("_roof", "--mask-suffix _roof")])
def test_images_without_masks_are_counted_and_named_or_the_suffix_is_proposed(tmp_path, plans, suffix, said):
    for i in range(40):
        write(tmp_path / f"data/images/a{i}.png", picture(seed=i))
        if i != 3:
            write(tmp_path / f"data/masks/a{i}{suffix}.png", mask())
    (tmp_path / "data/images/.hidden.png").touch()
    found = plans(tmp_path / "data")
    assert found.code == 2
    assert said in found.text
    assert "of 40 images" in found.text
    (tmp_path / "data/images/a3.png").unlink()
    assert plans(tmp_path / "data", "--mask-suffix", suffix).code == 0


def test_a_label_beyond_the_classes_is_named_with_its_file(folder, plans):
    write(folder / "masks/a2.png", mask(values=(0, 1, 7)))
    for i in (0, 1, 3, 4):
        write(folder / f"masks/a{i}.png", mask(values=(0, 1)))
    found = plans(folder, "--classes", "2")
    assert found.code == 2
    assert "a2.png" in found.text
    assert "7" in found.text
    assert "--labels" in found.text


def test_255_is_a_class_of_two_values_and_ignored_beside_two_others_if_rare(folder, plans):
    found = plans(folder)
    assert found.code == 0
    assert "ignored" not in found.text
    for i in range(5):
        write(folder / f"masks/a{i}.png", mask(values=(0, 1)))
    write(folder / "masks/a0.png", np.where(np.eye(16, dtype=bool), 255, mask(values=(0, 1))).astype(np.uint8))
    found = plans(folder)
    assert found.code == 0
    assert "ignored 16 pixels" in found.text
    write(folder / "masks/a1.png", mask(values=(0, 128, 255)))
    found = plans(folder)
    assert found.code == 2
    assert "--labels 0 1 128 255, if 255 is a class" in found.words


def test_eye_images_are_not_trained_on_their_field_of_view(tmp_path, plans):
    for i in range(5):
        write(tmp_path / f"drive/training/images/{i}_training.tif", picture(seed=i))
        write(tmp_path / f"drive/training/1st_manual/{i}_manual1.png", mask())
        write(tmp_path / f"drive/training/mask/{i}_training_mask.png", mask(values=(0, 255, 255, 255)))
    found = plans(tmp_path / "drive")
    assert found.code == 0
    assert "DRIVE's: training/images/ training/1st_manual/" in found.words
    assert "foreground 50.0%" in found.words


def test_flipped_copies_on_both_sides_are_named(tmp_path, plans):
    for i in range(4):
        image = cv2.resize(picture(4, 4, seed=i), (16, 16), interpolation=cv2.INTER_CUBIC)
        for side, pixels in (("train", image), ("val", image[:, ::-1])):
            write(tmp_path / f"data/{side}/images/{i}.png", pixels)
            write(tmp_path / f"data/{side}/masks/{i}.png", mask())
    found = plans(tmp_path / "data")
    assert found.code == 0
    assert "4 validation images almost the same as one in training" in found.words
    assert "(flipped or turned)" in found.words


def test_void_of_camvid_is_named_with_the_flag(tmp_path, plans):
    for name in ("train/a", "train/b", "val/c"):
        split, stem = name.split("/")
        write(tmp_path / f"camvid/{name}.png", picture(seed=ord(stem)))
        write(tmp_path / f"camvid/{split}annot/{stem}.png", mask(values=tuple(range(12))))
    found = plans(tmp_path / "camvid")
    assert "CamVid usually ignores mask value 11" in found.words
    assert "give --ignore-index 11" in found.words
    assert "usually ignores" not in plans(tmp_path / "camvid", "--ignore-index", "11").words


def test_polygons_in_the_place_of_masks_are_named_with_the_command_that_draws_them(folder, tmp_path):
    for path in (folder / "masks").iterdir():
        points = [[0, 0], [8, 0], [8, 16], [0, 16]]
        content = {"shapes": [{"label": "roof", "points": points}], "imagePath": path.name}
        (folder / "images" / f"{path.stem}.json").write_text(json.dumps(content))
        path.unlink()
    found = command(check, folder)
    assert found.code == 2
    assert "holds labelme annotations, which are not masks" in found.words
    assert f"python-mjaxseg.convert_labels{folder}" in "".join(found.text.split())
    assert command(convert_labels, folder).code == 0
    found = command(check, folder)
    assert found.code == 0
    assert "roof" in found.text


def test_one_file_too_many_one_image_alone_and_one_list_alone(folder, plans, tmp_path):
    (folder / "masks/a4.png").unlink()
    assert "--unpaired skip leaves out" in plans(folder).words
    found = plans(folder, "--unpaired", "skip")
    assert found.code == 0
    assert "1 files without a mask left out" in found.words
    (tmp_path / "list").write_text("a0\na1\na2\n")
    assert "20 percent of list drawn for validation" in plans(folder, "--train-list", tmp_path / "list").words
    for i in range(1, 5):
        (folder / f"images/a{i}.png").unlink()
        (folder / f"masks/a{i}.png").unlink(missing_ok=True)
    assert "--overfit 1" in plans(folder).words
    assert plans(folder, "--overfit", "1").code == 0


def test_antialiased_masks_are_refused_with_the_fixing_flags(folder, plans):
    for i in range(5):
        write(folder / f"images/a{i}.png", picture(64, 64, seed=i))
        write(folder / f"masks/a{i}.png", cv2.GaussianBlur(mask(64, 64), (0, 0), 1.5))
    found = plans(folder)
    assert found.code == 2
    for part in ("looks resampled or JPEG", "--binarize 128", "--snap-colors"):
        assert part in found.words
    assert plans(folder, "--binarize", "128").code == 0


def test_predictions_of_one_class_only_are_noticed(folder, trains, monkeypatch):
    def black(eval_step, data, epoch, real=loop.evaluate):
        return real(eval_step, data, epoch) | {"predicted": [1.0, 0.0]}

    monkeypatch.setattr(loop, "evaluate", black)
    found = trains(folder, "-e", "4")
    assert found.code == 0
    assert found.text.count("100 % background for 3 evaluations") == 1
    for part in ("foreground is 50.0%", "--class-weights auto", "--loss dice_ce"):
        assert part in found.words


def test_other_numbers_of_channels_are_listed(folder, plans):
    write(folder / "images/a1.png", picture(channels=4))
    found = plans(folder)
    assert found.code == 2
    assert "a1.png" in found.text
    assert "--channels 1 2 3" in found.words
    assert plans(folder, "--channels", "1", "2", "3").code == 0


def test_sixteen_bits_and_twelve_bands_are_read_whole(tmp_path, trains):
    for i in range(4):
        bands = picture(seed=i, channels=12, dtype=np.int16)
        bands[:2] = -9999
        image = tmp_path / f"data/images/a{i}.tif"
        image.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(image, bands, photometric="minisblack", planarconfig="contig")
        write(tmp_path / f"data/masks/a{i}.png", mask())
    found = trains(tmp_path / "data", "--nodata", "-9999", "--normalize", "dataset")
    assert found.code == 0
    assert "12 channels of int16, normalized by dataset" in found.text
    assert "ignored 96 pixels" in found.text  # of three training images


def test_sizes_that_differ_are_cropped_and_padded_not_stacked(folder, trains):
    write(folder / "images/a1.png", picture(21, 33))
    write(folder / "masks/a1.png", mask(21, 33))
    found = trains(folder)
    assert found.code == 0
    assert "random crops of" in found.text


def test_another_architecture_or_class_map_on_resume_is_refused_in_two_columns(folder, trains, tmp_path):
    assert trains(folder).code == 0
    found = command(train, "--resume", tmp_path / "run", "--widths", "4", "8", "--upsample", "bilinear")
    assert found.code == 2
    for part in ("the run command line", "--widths (2, 4) (4, 8)", "--upsample transpose bilinear"):
        assert part in found.words
    for i in range(5):
        write(folder / f"masks/a{i}.png", mask(values=(0, 1, 2)))
    again = ["--resume", tmp_path / "run", "-e", "3"]
    found = command(train, *again)
    assert found.code == 2
    assert "4 masks have another content, such as" in found.words
    split = tmp_path / "run/split.json"
    names = {part: names for part, names in json.loads(split.read_text()).items() if part != "contents"}
    split.write_text(json.dumps(names))  # as an earlier version wrote it
    found = command(train, *again)
    assert found.code == 2
    assert "labels: values 0 255 0 1 2" in found.words


@pytest.mark.parametrize(
    "what", ["RESOURCE_EXHAUSTED: Out of memory", "Failed to determine best cudnn convolution algorithm"]
)
def test_memory_that_does_not_suffice_is_told_with_what_to_try(folder, trains, monkeypatch, what):
    def step(*_, **__):
        def run(batch):
            raise jax.errors.JaxRuntimeError(what)

        return run

    monkeypatch.setattr(assembly, "compile_train_step", step)
    found = trains(folder)
    assert found.code == 1
    places = [
        found.words.index(part) for part in ("2 samples of 16x16", "--accumulate 2", "--precision bf16", "--remat")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_reader_that_fails_says_which_file(folder, trains, monkeypatch, workers):
    def vanish(*args, real=assembly.compile_train_step, **how):
        (folder / "images/a0.png").unlink()
        (folder / "images/a1.png").unlink()
        return real(*args, **how)

    monkeypatch.setattr(assembly, "compile_train_step", vanish)
    found = trains(folder, "--workers", workers, "--cache-mb", "0")
    assert found.code == 2
    assert "a0.png" in found.text or "a1.png" in found.text


def test_a_class_that_does_not_occur_has_no_score_and_is_left_out(tmp_path, trains):
    for i in range(6):
        write(tmp_path / f"data/{'train' if i < 4 else 'val'}/images/a{i}.png", picture(seed=i))
        values = (0, 1, 2) if i == 0 else (0, 1)
        write(tmp_path / f"data/{'train' if i < 4 else 'val'}/masks/a{i}.png", mask(values=values))
    found = trains(tmp_path / "data", "--class-names", "a", "b", "never-seen")
    assert found.code == 0
    scores = [line for line in found.text.splitlines() if "never-seen" in line and "│" in line]
    assert len(scores) == 1
    assert found.text.count("never-seen") >= 2


def test_a_folder_of_ignored_pixels_counts_only_the_others(folder, plans):
    for i in range(5):
        write(folder / f"masks/a{i}.png", mask(values=(0, 1, 9)))
    found = plans(folder, "--ignore-index", "9")
    assert found.code == 0
    assert "ignored 320 pixels" in found.text  # 5 of 16 columns of each of the 4 training images


def test_values_far_from_0_and_1_are_told_by_check_and_train_alike(tmp_path):
    for i in range(4):
        write(tmp_path / f"data/images/a{i}.tif", picture(seed=i, channels=12, dtype=np.int16))
        write(tmp_path / f"data/masks/a{i}.png", mask())
    for module, argv in ((check, []), (train, DRY)):
        found = command(module, "--data", tmp_path / "data", *argv)
        assert found.code == 0
        assert "images use little of their type's range (int16" in found.words
        assert "12 channels of int16, normalized by unit: x / 32767" in found.words
        assert "Give --normalize dataset, which scales them to mean 0 and deviation 1." in found.words
        better = command(module, "--data", tmp_path / "data", "--normalize", "dataset", *argv)
        assert "type's range" not in better.text


def test_any_names_will_do_and_no_network_is_needed(trains, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    names = ["田 1", "x.y.z", "ÄÖ", "-dash", "a" * 200]
    for i, name in enumerate(names):
        write(tmp_path / f"my data/IMAGES/{name}.png", picture(seed=i))
        write(tmp_path / f"my data/labels/{name}.png", mask())
    assert trains(tmp_path / "my data").code == 0
    assert command(predict, tmp_path / "run", tmp_path / "my data/IMAGES", "-o", tmp_path / "out").code == 0
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == set(names)


def test_a_broken_file_is_found_before_training_or_skipped_if_asked(folder, plans):
    whole = (folder / "images/a2.png").read_bytes()
    (folder / "images/a2.png").write_bytes(whole[: len(whole) // 2])
    found = plans(folder, "-v", "40")
    assert found.code == 2
    assert "a2.png" in found.text
    assert "--on-bad-file skip" in found.text
    found = plans(folder, "-v", "40", "--on-bad-file", "skip")
    assert found.code == 0
    assert "1 pair left out" in found.text
    assert "a2.png" in found.text


def test_a_run_in_a_relative_folder_is_scored_there_and_predicted_from_another(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command(check, "data").code == 0
    assert command(train, "--data", "data", "--out", "some/run", *TINY).code == 0
    found = command(evaluate, "some/run")  # the doctor, the trainer and the evaluation go by the same folder
    assert found.code == 0
    assert (tmp_path / "some/run/evaluation/metrics.json").is_file()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command(predict, "../some/run", "../data/images", "-o", "maps").code == 0
    image, predicted = read_pixels(folder / "images/a0.png").array, read_values(tmp_path / "elsewhere/maps/a0.png")[0]
    assert predicted.shape == image.shape[:2]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_of_an_old_archive_are_refused_before_anything_is_made(folder, trains, tmp_path):
    for sub in ("images", "masks"):
        (folder / sub / "a0.png").rename(folder / sub / os.fsdecode(b"stra\xdfe.png"))
    said = trains(folder)
    assert said.code == 2
    assert "e.png: its name is not UTF-8" in said.text
    assert not (tmp_path / "run").exists()


def test_weights_of_pytorch_are_taken_as_rgb_and_wrappers_that_are_not_known_named(folder, trains, tmp_path):
    torch = pytest.importorskip("torch")
    net = unet.unet_from(Model(widths=(2, 4)), in_channels=3, classes=2, seed=0)
    weights = {f"module.{name}": torch.from_numpy(array) for name, array in to_torch(net, "rgb").items()}
    for held, code, text in (
        ({"state_dict": weights, "epoch": 3}, 0, "taken as trained on red, green, blue, which is turned here"),
        ({"generator": weights, "epoch": 3}, 2, "Found: generator, epoch"),
    ):
        torch.save(held, tmp_path / "x.pth")
        said = trains(folder, "--load", tmp_path / "x.pth", "--dry-run")
        assert said.code == code
        assert text in said.words


def test_roof_without_blue_is_not_taken_for_no_data(tmp_path):
    for i in range(5):
        image = picture(seed=i) // 2 + 1
        image[:2], image[4:8, 4:8] = 0, (200, 30, 0)
        (tmp_path / "data/images").mkdir(parents=True, exist_ok=True)
        tags = [(42113, "s", 0, "0", True)]
        tifffile.imwrite(tmp_path / f"data/images/a{i}.tif", image, photometric="rgb", extratags=tags)
        write(tmp_path / f"data/masks/a{i}.png", mask())
    found = command(train, "--data", tmp_path / "data", *DRY)
    assert found.code == 0
    assert "ignored 128 pixels" in found.text  # two rows of each of the four training images


def test_masks_replaced_with_their_times_restored_are_read_again(folder):
    def shares() -> str:
        return next(
            line for line in command(train, "--data", folder, *DRY).text.splitlines() if "training images" in line
        )

    assert "background 50.0%" in shares()
    for path in sorted((folder / "masks").iterdir()):
        times = path.stat()
        path.write_bytes(write(folder.parent / "other.png", mask(values=(0, 0, 0, 255))).read_bytes())
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "background 75.0%" in shares()


def test_photos_turned_by_exif_with_masks_that_are_not_are_refused_with_both_ways_out(folder):
    exif = Image.Exif()
    exif[0x0112] = 3
    for i in range(2):
        Image.fromarray(picture(seed=i)).save(folder / f"images/a{i}.png", exif=exif)
    for module, argv in ((check, []), (train, DRY)):
        found = command(module, "--data", folder, *argv)
        assert found.code == 2
        assert "2 images with another EXIF orientation than the mask: which way up is the mask?" in found.words
        for said in (
            "images/a0.png: orientation 3, its mask has none",
            "exiftool -Orientation=",
            "mogrify -auto-orient",
        ):
            assert said in found.words
    for i in range(2):
        Image.fromarray(mask()).save(folder / f"masks/a{i}.png", exif=exif)
    found = command(check, folder)
    assert found.code == 0
    assert "input 2 images and 2 masks turned upright by the EXIF orientation" in found.words


def test_pointers_of_git_lfs_and_one_hot_masks_are_named_all_at_once(folder):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    for i in range(3):
        (folder / f"images/a{i}.png").write_bytes(pointer)
    (folder / "masks/a4.png").unlink()
    pages = np.stack([mask() == 0, mask() == 255, mask() == 3, mask() == 4]).astype(np.uint8)
    tifffile.imwrite(folder / "masks/a4.tif", pages, photometric="minisblack")
    found = command(check, folder)
    assert found.code == 2
    assert found.words.count("is a pointer of Git LFS, not the file itself: run git lfs pull") == 3
    assert "a4.tif: is one-hot: in each pixel one of 4 bands is set; expected one band" in found.words


def test_numpy_arrays_are_simply_read(tmp_path):
    for kind, array in (("images", picture), ("masks", lambda **_: mask())):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(4):
            np.save(tmp_path / f"data/{kind}/a{i}.npy", array(seed=i))
    found = command(train, "--data", tmp_path / "data", *DRY)
    assert found.code == 0
    assert "3 training images of 16x16; background 50.0%" in found.text


@pytest.mark.parametrize("value", [-9999, 7])
def test_marker_that_nobody_declared_and_constant_bands_are_pointed_at(value, tmp_path):
    for i in range(5):
        bands = picture(seed=i, channels=4, dtype=np.int16)
        bands[..., 3] = value
        write(tmp_path / f"data/images/a{i}.tif", bands)
        write(tmp_path / f"data/masks/a{i}.png", mask())
    for module, argv in ((check, []), (train, DRY)):
        found = command(module, "--data", tmp_path / "data", "--normalize", "dataset", *argv)
        assert found.code == 0
        assert f"band 4 is {value} in all training images, and tells the network nothing" in found.words
        assert ("give --nodata -9999" in found.words) == (value == -9999)
