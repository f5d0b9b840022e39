"""The layers question passes in its quick form, and the rows that should fail do when a layer is broken on purpose."""

import pytest

from parity import mutations
from parity.answer import Settings
from parity.checks import layers

QUICK = Settings(quick=True)


def failed() -> set[str]:
    return {row.name for row in layers.run(QUICK).rows if not row.passed}


def broken_by(name: str) -> set[str]:
    (wrong,) = (m for m in mutations.all_mistakes()["layers"] if m.name == name)
    with mutations.injected(wrong):
        return failed()


def test_it_passes_and_every_row_has_a_name_of_its_own():
    answer = layers.run(QUICK)
    assert answer.passed
    assert len({row.name for row in answer.rows}) == len(answer.rows) >= 30


@pytest.mark.parametrize(
    ("mistake", "rows"),
    [
        ("BatchNorm: running variance biased", {"BatchNorm in training: running variance"}),
        ("BatchNorm: fast variance", {"float32: BatchNorm output"}),
        ("max-pool by reshape, ties split", {"max-pool of quantized values", "max-pool, all equal"}),
        ("transposed convolution: kernel not flipped", {"transposed convolution 2x2"}),
    ],
)
def test_a_mistake_fails_its_rows(mistake, rows):
    assert rows <= broken_by(mistake)


def test_a_biased_running_variance_is_no_other_rows_business():
    others = {row for row in broken_by("BatchNorm: running variance biased") if "BatchNorm" not in row}
    assert others <= {"ConvBlock"}
