"""The command: what it prints for good and bad folders, its exit status, and that it never ends in a traceback."""

import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from image_files import write
from PIL import Image

from jaxseg import check
from jaxseg.data.made.fields import make_fields
from jaxseg.doctor import report

SIDE = 64


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(report.console, "_width", 120)


@pytest.fixture
def fields(tmp_path) -> Path:
    """Made-up fields: 16 training and 6 validation pairs, t0 to t15 and v0 to v5."""
    return good_folder(tmp_path / "fields")


def good_folder(root: Path) -> Path:
    make_fields(root, train=16, val=6, size=SIDE)
    (root / "fields.json").unlink()
    for path in sorted(root.rglob("*.png")):
        split, number = path.stem.split("_")[:2]
        path.rename(path.with_name(f"{split[0]}{int(number)}{'_mask' * path.stem.endswith('_mask')}.png"))
    return root


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def spoil(root: Path) -> Path:
    """Twelve different faults."""
    train, masks, val, val_masks = (root / name for name in ("train", "Ltrain", "val", "Lval"))
    whole = (train / "t0.png").read_bytes()
    (train / "t0.png").write_bytes(whole[: len(whole) // 2])
    (masks / "t1_mask.png").write_bytes(b"")
    write(masks / "t2_mask.png", read(masks / "t2_mask.png")[:50])
    image = read(train / "t3.png")
    write(train / "t3.png", np.dstack([image, image[..., 0]]))
    write(train / "t4.png", read(train / "t4.png").astype(np.uint16) * 257)
    write(masks / "t5_mask.png", read(train / "t6.png"))
    write(masks / "t7_mask.png", cv2.GaussianBlur(read(masks / "t7_mask.png"), (7, 7), 0))
    write(train / "t8.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    write(train / "t10.png", read(train / "t9.png"))
    write(val / "v0.png", read(train / "t11.png"))
    Image.fromarray(read(train / "t12.png")[..., ::-1]).save(root / "again.jpg", quality=70)
    write(val / "v1.png", read(root / "again.jpg"))
    (root / "again.jpg").unlink()
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(val_masks / "v2_mask.png", format="JPEG")
    for name in ("t13", "t14", "t15"):
        write(masks / f"{name}_mask.png", read(masks / "t13_mask.png"))
    return root


# the message of each, its files, and the fix
TWELVE = [
    ("2 files cannot be read", ["train/t0.png: is cut off", "Ltrain/t1_mask.png: is empty"], "--on-bad-file skip"),
    ("1 mask of another size than the image", ["Ltrain/t2_mask.png: 64x50, its image 64x64"], "nearest neighbor"),
    ("not of 3 channels as the others", ["train/t3.png: 4 channels"], "--channels 1 2 3"),
    ("not uint8 as the others", ["train/t4.png: uint16"], "Convert them to uint8"),
    ("1 mask looking like a photo", ["Ltrain/t5_mask.png: "], "--masks"),
    ("distinct values: looks resampled or JPEG", ["Ltrain/t7_mask.png: "], "--binarize 128"),
    ("1 image all black", ["train/t8.png"], "--nodata 0"),
    ("2 images with several masks", ["Ltrain/t10_mask.png and Ltrain/t9_mask.png"], "remove the others"),
    ("1 validation image also in training", ["val/v0.png = train/t11.png"], "--group-by"),
    ("1 validation image almost the same", ["val/v1.png ~ train/t12.png"], "--group-by"),
    ("1 mask in JPEG", ["Lval/v2_mask.png"], "PNG"),
    ("3 masks the same as others", [f"Ltrain/t{i}_mask.png" for i in (13, 14, 15)], "fits no other"),
]


def blocks(text: str) -> list[str]:
    """What is printed of each finding."""
    result: list[list[str]] = []
    for line in text.splitlines():
        if line.split(" ")[0] in report.STYLES:
            result.append([])
        elif not line.startswith("        "):
            continue
        if result:
            result[-1].append(line[8:].strip())
    return ["\n".join(lines) for lines in result]


def test_twelve_faults_are_named_with_files_and_fixes(fields, capsys):
    assert check.main([str(spoil(fields))]) == 2
    printed, error = capsys.readouterr()
    assert error == ""
    for what, files, advice in TWELVE:
        (block,) = [block for block in blocks(printed) if what in block]
        for file in files:
            assert file in block
        assert advice in block.partition("->")[2]
    assert len(blocks(printed)) >= 12
    assert "Not ready to train: 6 errors, 6 warnings." in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_lines_are_no_wider_than_the_terminal(columns, fields, capsys, monkeypatch):
    monkeypatch.setattr(report.console, "_width", columns)
    spoil(fields)
    check.main(["--data", str(fields)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert min(map(len, filter(None, lines))) > 0


def test_good_folder_gets_description_and_train_command(fields, capsys):
    assert check.main([str(fields)]) == 0
    printed = capsys.readouterr().out
    for part in ("train/ Ltrain/ val/ Lval/", "16 training, 6 validation", "64x64", "uint8, 3 channels (color)"):
        assert part in printed
    rows = [line.split() for line in printed.splitlines()]
    (row,) = [row for row in rows if row[:3] == ["255", "1", "foreground"]]
    share = np.mean([read(path) == 255 for path in (fields / "Ltrain").iterdir()])
    assert row[3:5] == [f"{100 * share:.2f}", "%"]
    assert "Ready to train." in printed
    assert printed.splitlines()[-1] == "  " + report.command("jaxseg.train", "--data", fields)


def test_ignored_pixels_have_a_table_row(fields, capsys):
    for folder in ("Ltrain", "Lval"):
        for path in (fields / folder).iterdir():
            mask = read(path) // 255
            mask[:16] = 255
            write(path, mask)
    assert check.main([str(fields)]) == 2
    assert "Fix the errors, and check again." in capsys.readouterr().out  # as two flags may be meant
    assert check.main([str(fields), "--ignore-index", "255"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "ignored, of all" in line]
    assert row.split()[0] == "255"
    assert row.count("25.00 %") == 2


def test_flags_that_fix_all_errors_are_verified_and_printed(fields, capsys):
    path = fields / "Ltrain/t7_mask.png"
    write(path, cv2.GaussianBlur(read(path), (7, 7), 0))
    (fields / "train/t0.png").write_bytes(b"")
    assert check.main([str(fields), "--seed", "3"]) == 2
    printed = capsys.readouterr().out
    assert "These flags fix all errors:" in printed
    line = shlex.split(printed.splitlines()[-1])
    assert line[:3] == ["python", "-m", "jaxseg.train"]
    assert line[3:] == f"--data {fields} --binarize 128 --on-bad-file skip --seed 3".split()
    assert check.main(line[3:]) == 0
    assert "1 pair left out" in capsys.readouterr().out


def test_pasted_command_repeats_the_first_advice(fields, capsys):
    for path in [*(fields / "Ltrain").iterdir(), *(fields / "Lval").iterdir()]:
        values = (read(path) // 255).astype(np.int16)
        values[:4] = -1
        tifffile.imwrite(path.with_suffix(".tif"), values)
        path.unlink()
    assert check.main([str(fields)]) == 2
    printed = capsys.readouterr().out
    assert "--ignore-index -1, if they mean no data" in printed
    line = shlex.split(printed.splitlines()[-1])
    assert line[3:] == f"--data {fields} --ignore-index -1".split()
    assert check.main(line[3:]) == 0


def test_flags_that_fix_only_some_errors_are_not_printed(fields, capsys):
    spoil(fields)
    assert check.main([str(fields)]) == 2
    printed = capsys.readouterr().out
    assert "These flags" not in printed
    assert "Fix the errors, and check again." in printed


def test_flags_that_do_not_fix_their_error_are_not_proposed(fields):
    (fields / "train/t0.png").write_bytes(b"")
    asked = report.parse([str(fields)])
    found = report.examine(report.find_split(asked.data, 0), asked.data, 0)
    assert report.fixed_settings(found, asked).data.on_bad_file == "skip"
    (error,) = found.errors
    for flags in (("--binarize", "128"), ("--validation", "0")):
        other = dataclasses.replace(found, findings=(dataclasses.replace(error, flags=flags),))
        assert report.fixed_settings(other, asked) is None


def test_wrong_flag_is_replaced_by_the_fixing_one(fields, capsys):
    for path in (fields / "train").iterdir():
        image = read(path)
        write(path, np.dstack([image, image[..., 0]]))
    assert check.main([str(fields), "--channels", "1", "4"]) == 2
    assert "1 to 3" in capsys.readouterr().out
    assert check.main([str(fields)]) == 2
    assert capsys.readouterr().out.splitlines()[-1].endswith("--channels 1 2 3")


def test_mask_values_are_listed_while_classes_are_unknown(fields, capsys):
    path = fields / "Ltrain/t7_mask.png"
    write(path, cv2.GaussianBlur(read(path), (7, 7), 0))
    check.main([str(fields)])
    printed = capsys.readouterr().out
    assert "mask value" in printed
    assert any(line.split()[:1] == ["255"] for line in printed.splitlines())
    assert " others" in printed


def test_files_that_do_not_pair_up_are_named(fields, capsys):
    (fields / "Ltrain/t3_mask.png").unlink()
    (fields / "Ltrain/t5_mask.png").rename(fields / "Ltrain/other_mask.png")
    assert check.main([str(fields), "--mask-suffix", "_mask"]) == 2
    printed = capsys.readouterr().out
    for name in ("t3.png", "t5.png", "other_mask.png"):
        assert name in printed


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("", ["FOLDER", "--images"]),
        ("nowhere", ["nowhere"]),
        ("a --data b", ["--data b", "not both"]),
        ("--images a", ["--images", "--masks"]),
        (". --validation 0.2", ["--validation", "percentage"]),
    ],
)
def test_invalid_command_lines_are_errors_without_traceback(words, parts, capsys):
    assert check.main(words.split()) == 2
    printed, error = capsys.readouterr()
    assert all(part in printed for part in parts)
    assert "Traceback" not in printed + error
    assert check.main([*words.split(), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(fields, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "examine", interrupt)
    assert check.main([str(fields)]) == 130


@pytest.mark.parametrize(
    "line",
    [
        "--data 'a b' --validation 12.5 --channels 4 1 --labels '#ff0000' 7 --snap-colors --seed 9",
        "--images i --masks m --mask-suffix=-label --nodata=-9999.0 --on-bad-file skip",
    ],
)
def test_settings_round_trip_through_the_command_line(line):
    asked = report.parse(shlex.split(line))
    assert report.words(asked) == shlex.split(line)
    assert report.parse(report.words(asked)) == asked


def test_command_runs_on_an_ascii_terminal(fields):
    name = fields / "train/t1.png"
    name.rename(fields / "train/поле 田.png")
    (fields / "Ltrain/t1_mask.png").rename(fields / "Ltrain/поле 田_mask.png")
    (fields / "train/поле 田.png").write_bytes(b"")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    words = [sys.executable, "-m", "jaxseg.check", str(fields)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert "1 file cannot be read" in done.stdout
    assert "####" in done.stdout
    assert "\\u043f\\u043e\\u043b\\u0435" in done.stdout
