"""The precision question passes in its quick form, documents its evidence, and sees precision that is lost."""

import json

import numpy as np
import pytest

from jaxseg.nn import layers
from parity import mutations
from parity.checks import precision
from parity.judge.answer import Settings

QUICK = Settings(quick=True, seeds=1)


@pytest.mark.full  # CI asks `python -m parity --quick`
def test_it_passes():
    answer = precision.run(QUICK)
    assert [row.name for row in answer.rows if not row.passed] == []
    assert {case.name for case in precision.QUICK} == {row.name.partition(": ")[0] for row in answer.rows}


def test_both_types_and_large_means_are_asked():
    assert [case.name for case in precision.QUICK] == ["float32", "float32, large means", "bfloat16"]


def test_evidence_is_json_and_as_documented(monkeypatch):
    monkeypatch.setattr(precision, "QUICK", precision.QUICK[:1])
    evidence = json.loads(json.dumps(dict(precision.run(QUICK).evidence)))
    assert {"three_way", "types", "layers", "ulps"} == set(evidence)
    for entry in evidence["three_way"]:
        assert {len(entry[side]) for side in ("jaxseg", "torch", "between")} == {1}
    assert [layer["kind"] for layer in evidence["layers"]][:3] == ["Conv2d", "BatchNorm2d", "ReLU"]
    for found in evidence["ulps"]["logits"].values():
        shares = [found[str(bound)] for bound in precision.BINS]
        assert shares == sorted(shares)
        assert 0 < found["counted"] <= 1


def test_precision_that_is_lost_shows(monkeypatch):
    monkeypatch.setattr(precision, "QUICK", precision.QUICK[:1])
    (wrong,) = (m for m in mutations.all_mistakes()["precision"] if m.name == "BatchNorm: statistics in bfloat16")
    with mutations.injected(wrong):
        assert not precision.run(QUICK).passed


def statistics(right):
    """Statistics of the batch rounded to the type of the computation."""

    def wrong(self, x, valid):
        mean, var = right(self, x, valid)
        self.mean[...], self.var[...] = (s[...].astype(self.dtype).astype(s.dtype) for s in (self.mean, self.var))
        return mean, var

    return wrong


@pytest.mark.parametrize(
    ("owner", "attribute", "wrong", "row"),
    [
        (layers, "_add_bias", lambda right: lambda y, bias: y + bias[None, None, None].astype(y.dtype), "gradients"),
        (layers.BatchNorm, "_statistics", statistics, "running statistics of what was seen"),
    ],
)
def test_precision_that_is_lost_in_bfloat16_alone_shows(owner, attribute, wrong, row, monkeypatch):
    monkeypatch.setattr(owner, attribute, wrong(getattr(owner, attribute)))
    monkeypatch.setattr(precision, "QUICK", precision.QUICK[-1:])
    answer = precision.run(QUICK)
    assert f"bfloat16: {row}" in [row.name for row in answer.rows if not row.passed]


def test_histogram_counts_distances_in_ulps_above_a_floor():
    exact = np.array([1.0, 2.0, 4.0, 1e-9], np.float32)
    off = exact.copy()
    off[1] = np.nextafter(np.nextafter(off[1], np.float32(9)), np.float32(9))
    off[3] *= 2  # far in ulps, but below the floor
    found = precision.histogram([(off, exact)])
    assert found["counted"] == 0.75
    assert found["0"] == found["1"] == pytest.approx(2 / 3)
    assert found["4"] == 1
    assert found["max"] == 2
