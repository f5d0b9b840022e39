"""The precision question passes in its quick form and documents its evidence; its mistakes are in the matrix."""

import json

import numpy as np
import pytest

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
