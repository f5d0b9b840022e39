"""The augmentation question passes in its quick form, and draws that are wrong on purpose fail the rows about them."""

import numpy as np
import pytest

pytest.importorskip("torch")

from parity import mutations
from parity.checks import augmentation, crops
from parity.judge.answer import Settings
from parity.mistakes.augmentation import MISTAKES
from parity.twins.seen import probe, seen


def failed(name: str, rows) -> set[str]:
    (wrong,) = (m for m in MISTAKES if m.name == name)
    with mutations.injected(wrong):
        return {row.name for row in rows() if not row.passed}


@pytest.mark.full  # CI asks `python -m parity --quick`
def test_it_passes_and_every_row_has_a_name_of_its_own():
    rows = augmentation.run(Settings(quick=True)).rows
    assert [row for row in rows if not row.passed] == []
    assert len({row.name for row in rows}) == len(rows) >= 50
    by_chance = [row for row in rows if row.gate == pytest.approx(-np.log10(augmentation.ALPHA))]
    assert len(by_chance) <= augmentation.TESTS


def test_a_row_that_crops_never_reach_is_seen():
    names = failed("crops: never the last row", lambda: crops.rows(0, 1e-8))
    assert {f"crops, {cache}: places that never occur" for cache in ("memory", "device")} < names


@pytest.mark.parametrize(("h", "w", "turns"), [(6, 6, range(4)), (5, 8, (0, 2))])
def test_flips_and_turns_are_read_off_an_image(h, w, turns):
    before = probe(np.random.default_rng(0), 1, h, w)
    for flip in (0, 1):
        for turn in turns:
            after = {name: np.rot90(x[:, :, ::-1] if flip else x, turn, (1, 2)) for name, x in before.items()}
            what = seen(before, after)
            assert (what.flip.item(), what.turn.item()) == (flip, turn)
