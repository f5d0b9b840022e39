"""Which images are called near-duplicates, and how often wrongly."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from jaxseg.doctor.alike import alike, symmetries

spec = importlib.util.spec_from_file_location("rates", Path(__file__).parents[1] / "scripts" / "near_duplicates.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_eight_symmetries_are_all_different():
    image = np.arange(9).reshape(1, 3, 3)
    turned = list(symmetries(image))
    assert (turned[0] == image).all()
    assert len({one.tobytes() for one in map(np.ascontiguousarray, turned)}) == 8


@pytest.mark.parametrize("number", range(8))
def test_flipped_or_turned_copy_is_alike(rng, number):
    known = rng.integers(0, 256, (9, 16, 16)).astype(np.uint8)
    copy = list(symmetries(known[4:5]))[number]
    assert list(alike(known, copy)) == [(4, 0, number == 0)]


@pytest.mark.parametrize("make", [script.noise_in_a_disc, script.fundus, script.cells], ids=lambda make: make.__name__)
def test_images_that_share_a_frame_are_not_alike_but_copies_are(make):
    wrong, _, missed, copies = script.rates(
        [make(np.random.default_rng(i)) for i in range(12)], np.random.default_rng(0)
    )
    assert wrong == 0
    assert missed <= copies * (0.5 if make is script.noise_in_a_disc else 0.0)


def test_two_images_are_compared_without_a_mean_picture(rng):
    known = rng.integers(0, 256, (1, 16, 16)).astype(np.uint8)
    assert list(alike(known, known)) == [(0, 0, True)]
    assert list(alike(known, 255 - known)) == []
    assert list(alike(known, np.full_like(known, 7))) == []


@pytest.mark.full
def test_rates_of_the_made_up_sets(capsys):
    assert script.main(["--count", "40"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert {row[0]: row[2] for row in rows} == dict.fromkeys(("field", "noise_in_a_disc", "fundus", "cells"), "0")
