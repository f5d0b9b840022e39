"""Evaluation: the trainer's own scores again, whatever the order and the batch; whole files or none; plain errors."""

import csv
import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoint import forget_digests

from jaxseg import evaluate, train
from jaxseg.base.config import Data
from jaxseg.base.errors import UserError
from jaxseg.data.find.folders import find_pairs
from jaxseg.data.read.samples import Reading, read_sample
from jaxseg.devices import processes
from jaxseg.inference import evaluate as evaluation
from jaxseg.inference import results
from jaxseg.inference.predictor import Predictor
from jaxseg.inference.progress import ImageBar
from jaxseg.learn import metrics
from jaxseg.runs.checkpoint import load_model

FILES = {"metrics.json", "per_image.csv", "confusion.png", "worst.png"}


@pytest.fixture(scope="module")
def run(tiles_root, tmp_path_factory):
    """A short run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--widths", "4", "8", "-e", "2", "-b", "4", "--workers", "0"]
    assert train.main(["--data", str(tiles_root), "--out", str(folder), *flags]) == 0
    return folder


@pytest.fixture
def launch(run, tmp_path, capsys):
    """Exit status, output and error of a command; with the results in tmp_path/out."""

    def launch(*argv, out=tmp_path / "out"):
        code = evaluate.main([str(run), *map(str, argv), "-o", str(out)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return SimpleNamespace(code=code, out=said.out, err=said.err, folder=out)

    return launch


@pytest.fixture
def other(tiles_root, tmp_path):
    """Other data: a folder of four images and masks, of which one is larger."""
    folder = tmp_path / "other"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for i, pair in enumerate(find_pairs(tiles_root / "val", tiles_root / "Lval")):
        image, mask = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (pair.image, pair.mask))
        if i == 1:
            image, mask = image.repeat(2, 0), mask.repeat(2, 0)
        cv2.imwrite(str(folder / f"images/{i}.png"), image)
        cv2.imwrite(str(folder / f"masks/{i}.png"), mask)
    return folder


def read(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def rows(folder):
    with open(folder / "per_image.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_the_trainers_validation(run, launch):
    done = launch()
    assert done.code == 0
    assert {path.name for path in done.folder.iterdir()} == FILES
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    best = max(log, key=lambda record: record["validation"]["miou"])["validation"]
    found = read(done.folder)
    for name in ("miou", "accuracy", "iou", "precision", "recall", "fwiou"):
        assert found[name] == pytest.approx(best[name], abs=1e-9), name
    assert found["images"] == 4
    assert found["classes"] == ["background", "foreground"]
    assert np.sum(found["confusion_matrix"]) == found["pixels"] == 4 * 32 * 32
    for text in ("foreground", "boundary IoU", f"{best['miou']:.4f}", "metrics.json"):
        assert text in done.out


def test_results_lie_in_the_runs_folder_and_are_not_written_over_unasked(run, tiles_root, other, tmp_path, capsys):
    run = shutil.copytree(run, tmp_path / "run")
    assert evaluate.main([str(run), "--worst", "0", "--checkpoint", "last"]) == 0
    assert {path.name for path in (run / "evaluation").iterdir()} == FILES - {"worst.png"}
    assert evaluate.main([str(run), str(tiles_root)]) == 2  # the same data by name
    err = capsys.readouterr().err
    assert "--overwrite" in err
    assert str(run / "evaluation" / "per_image.csv") in err
    assert evaluate.main([str(run), str(tiles_root), "--overwrite"]) == 0
    assert (run / "evaluation" / "worst.png").exists()
    assert evaluate.main([str(run), "--overwrite", "--worst", "0"]) == 0
    assert not (run / "evaluation" / "worst.png").exists()
    assert evaluate.main([str(run), str(other)]) == 0
    assert (run / "evaluation-other" / "metrics.json").exists()


def test_all_of_other_data_is_scored_and_a_line_is_an_image(run, launch, other):
    done = launch(other, "--tile", "32")
    assert done.code == 0
    net, description = load_model(run)
    reading = Reading.from_dict(description["reading"])
    predictor = Predictor(net, reading, tile=32, sides=[32])
    total = 0
    for row, pair in zip(rows(done.folder), find_pairs(other / "images", other / "masks"), strict=True):
        sample = read_sample(pair, reading)
        confusion = metrics.count_pixels(predictor.classes(sample["image"]), sample["mask"], 2)
        assert (row["name"], int(row["height"]), int(row["width"])) == (pair.image.name, *sample["mask"].shape)
        assert int(row["counted_pixels"]) == confusion.sum()
        assert float(row["miou"]) == pytest.approx(metrics.iou_score(confusion), abs=1e-6)
        assert float(row["iou foreground"]) == pytest.approx(metrics.iou_score(confusion, "none")[1], abs=1e-6)
        total = total + confusion
    np.testing.assert_array_equal(read(done.folder)["confusion_matrix"], total)


@pytest.mark.parametrize(("split", "images"), [("training", 10), ("validation", 4), ("all", 14)])
def test_parts_of_the_runs_own_data(launch, split, images):
    done = launch("--split", split)
    assert read(done.folder)["images"] == images
    assert len({row["name"] for row in rows(done.folder)}) == images


def test_test_folders_of_the_data_are_scored_on_request(tmp_path):
    for name in ("test/a.png", "test/b.png", "testannot/a.png", "testannot/b.png", "train/c.png", "trainannot/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [pair.mask.name for pair in evaluation.test_pairs(Data(data=tmp_path))] == ["a.png", "b.png"]
    for data in (Data(), Data(data=tmp_path / "train"), Data(data=tmp_path / "nowhere")):
        with pytest.raises(UserError, match="--split test: no test images with masks in"):
            evaluation.test_pairs(data)


def test_a_single_pair_can_be_scored(launch, other):
    for folder in ("images", "masks"):
        for name in ("1.png", "2.png", "3.png"):
            (other / folder / name).unlink()
    done = launch("--images", other / "images", "--masks", other / "masks")
    assert done.code == 0
    assert [row["name"] for row in rows(done.folder)] == ["0.png"]


@pytest.fixture(scope="module")
def parts(run, tiles_root):
    net, description = load_model(run)
    pairs = find_pairs(tiles_root / "val", tiles_root / "Lval")
    reading = Reading.from_dict(description["reading"])
    predictors = {
        size: Predictor(net, reading, tile=16, overlap=0.25, batch_size=size, sides=[32]) for size in (1, 2, 3)
    }
    return pairs, reading, predictors, evaluation.score(pairs, reading, predictors[1], 2)


@settings(max_examples=8)
@given(st.data())
def test_scores_depend_neither_on_the_order_nor_on_the_batch_size(parts, data):
    pairs, reading, predictors, expected = parts
    order = data.draw(st.permutations(pairs))
    found = evaluation.score(order, reading, predictors[data.draw(st.sampled_from([1, 2, 3]))], 2)
    np.testing.assert_array_equal(found.confusion, expected.confusion)
    assert found.summary() == expected.summary()
    assert sorted(found.images, key=lambda s: s.name) == sorted(expected.images, key=lambda s: s.name)
    assert [sample.score.name for sample in found.worst] == [sample.score.name for sample in expected.worst]
    lowest = sorted(image.miou for image in found.images)[:2]
    assert [sample.score.miou for sample in found.worst] == lowest


def test_shares_of_several_processes_make_the_scores_of_one(parts, monkeypatch):
    pairs, reading, predictors, expected = parts
    named, shares = [(pair.image.name, pair) for pair in pairs], []
    for process in range(3):
        monkeypatch.setattr(evaluation, "share_of", lambda count, process=process: range(process, count, 3))
        shares.append(evaluation.score_share(named, reading, predictors[1], 2))
    assert [len(scores.images) for scores, _ in shares] == [2, 1, 1]
    monkeypatch.setattr(evaluation, "gathered", lambda _: shares)
    found = evaluation.score(pairs, reading, predictors[1], 2)
    np.testing.assert_array_equal(found.confusion, expected.confusion)
    assert found.summary() == expected.summary()
    assert results.table(found) == results.table(expected)
    assert [sample.score for sample in found.worst] == [sample.score for sample in expected.worst]


def test_several_devices_leave_the_files_of_one(run, other, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(processes, "start", lambda machine: None)  # there are two CPU devices
    for count in (1, 2):
        assert evaluate.main([str(run), str(other), "-o", str(tmp_path / str(count)), "--devices", str(count)]) == 0
    assert "2 devices" in capsys.readouterr().out
    for name in FILES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_turns_change_the_scores_and_are_noted(launch, tmp_path):
    plain, turned = launch(), launch("--tta", out=tmp_path / "turned")
    assert (read(plain.folder)["tta"], read(turned.folder)["tta"]) == (False, True)
    assert read(plain.folder)["confusion_matrix"] != read(turned.folder)["confusion_matrix"]


def test_ignored_pixels_do_not_count_and_absent_classes_have_no_score(run, tmp_path, launch, other):
    found = shutil.copytree(run, tmp_path / "run")
    (description,) = found.glob("checkpoints/best/*/meta/metadata")
    forget_digests(description.parents[1])
    meta = json.loads(description.read_text(encoding="utf-8"))
    labels = meta["description"]["reading"]["labels"]
    labels |= {"values": [0, 255], "ignored": [7], "binarize": None}
    meta["description"]["reading"]["nodata"] = 0.0
    description.write_text(json.dumps(meta), encoding="utf-8")
    cv2.imwrite(str(other / "images/3.png"), np.zeros((32, 32, 3), np.uint8))
    cv2.imwrite(str(other / "masks/0.png"), np.full((32, 32), 7, np.uint8))
    assert evaluate.main([str(found), str(other), "-o", str(tmp_path / "out")]) == 0
    row = rows(tmp_path / "out")[0]
    assert (row["counted_pixels"], row["ignored_pixels"]) == ("0", "1024")
    assert (row["accuracy"], row["miou"], row["iou foreground"]) == ("", "", "")
    assert rows(tmp_path / "out")[3]["ignored_pixels"] == "1024", "the image has no data there"
    ignored = sum(int(row["ignored_pixels"]) for row in rows(tmp_path / "out"))
    assert read(tmp_path / "out")["ignored_pixels"] == ignored


def test_all_that_is_wrong_with_files_is_listed_and_nothing_written(launch, other):
    (other / "images/0.png").write_bytes(b"no picture")
    cv2.imwrite(str(other / "images/2.png"), np.zeros((32, 32, 4), np.uint8))
    cv2.imwrite(str(other / "masks/3.png"), np.full((20, 32), 255, np.uint8))
    done = launch(other)
    assert done.code == 2
    for name in ("images/0.png", "images/2.png", "masks/3.png", "3 problems in 4 pairs"):
        assert name in done.err.replace("\\", "/")
    assert not done.folder.exists()


def test_mask_values_that_the_run_does_not_know_are_named(launch, other):
    cv2.imwrite(str(other / "masks/2.png"), np.full((32, 32), 7, np.uint8))
    done = launch(other)
    assert done.code == 2
    assert "2.png" in done.err
    assert "7" in done.err.partition("2.png")[2]
    assert not done.folder.exists()


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (["nowhere"], ["nowhere", "no such folder"]),
        (["a", "--data", "b"], ["not both"]),
        (["a", "--labels", "0", "1"], ["--labels", "the run's"]),
        (["--group-by", "x"], ["--group-by", "FOLDER"]),
        (["--tile", "33"], ["--tile is 33"]),
        (["--worst", "-1"], ["--worst is -1"]),
        (["--coordinator", "here"], ["--coordinator: give all of --coordinator, --processes and --process"]),
    ],
)
def test_what_cannot_be_is_refused(launch, argv, texts):
    done = launch(*argv)
    assert done.code == 2
    for text in texts:
        assert text in done.err
    assert not done.folder.exists()


def test_a_folder_without_masks_is_for_prediction(launch, other):
    shutil.rmtree(other / "masks")
    done = launch(other)
    assert done.code == 2
    assert "python -m jaxseg.predict" in done.err


def test_images_of_the_run_that_are_gone_are_named(run, tiles_root, tmp_path, capsys):
    moved, found = shutil.copytree(tiles_root, tmp_path / "moved"), shutil.copytree(run, tmp_path / "run")
    config = found / "config.json"
    kept = json.loads(config.read_text(encoding="utf-8"))
    kept["data"]["data"] = str(moved)
    config.write_text(json.dumps(kept), encoding="utf-8")
    image = next((moved / "val").iterdir())
    mask = next(m for m in (moved / "Lval").iterdir() if m.name.startswith(image.stem))
    image.unlink()
    mask.unlink()
    assert evaluate.main([str(found)]) == 2
    assert f"{image.name}: of validation" in capsys.readouterr().err
    shutil.rmtree(moved)
    assert evaluate.main([str(found)]) == 2
    assert "give their FOLDER" in capsys.readouterr().err
    (found / "split.json").unlink()
    assert evaluate.main([str(found)]) == 2
    assert "split.json" in capsys.readouterr().err
    assert not (found / "evaluation").exists()


def test_a_run_on_made_up_fields_knows_its_data(run, tmp_path, monkeypatch):
    found = shutil.copytree(run, tmp_path / "run")
    config, split = found / "config.json", found / "split.json"
    kept = json.loads(config.read_text(encoding="utf-8"))
    kept["data"]["data"] = None
    config.write_text(json.dumps(kept), encoding="utf-8")
    split.write_text(json.dumps({"training": ["train_0000.png"], "validation": ["val_0003.png"]}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([str(found)]) == 0
    assert [row["name"] for row in rows(found / "evaluation")] == ["val_0003.png"]


def test_a_run_that_is_none(tmp_path, capsys):
    assert evaluate.main([str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(launch, monkeypatch):
    def stops(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageBar, "next", stops)
    done = launch()
    assert done.code == 130
    assert not done.folder.exists()


def test_a_failing_disk_leaves_what_was_there(launch, monkeypatch):
    done = launch()
    before = (done.folder / "metrics.json").read_bytes()

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxseg.inference.results.replace", full)
    again = launch("--overwrite", "--split", "all")
    assert again.code == 2
    assert "No space left" in again.err
    assert (done.folder / "metrics.json").read_bytes() == before


def test_folder_that_cannot_be_written_is_refused_before_anything_is_scored(launch, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("jaxseg.inference.evaluate.load", None)  # the network is not even loaded
    done = launch(out=tmp_path / "file/out")
    assert done.code == 2
    assert "file/out: cannot be written to (Not a directory). Give another -o." in done.err
