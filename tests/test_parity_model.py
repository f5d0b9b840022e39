"""The model question passes in its quick form, and sees what is broken on purpose and nothing else."""

import pytest

from parity import mutations
from parity.checks import model
from parity.judge.answer import Settings


def failed() -> set[str]:
    return {row.name.rpartition(": ")[2] for row in model.run(Settings(quick=True)).rows if not row.passed}


def broken_by(question: str, name: str) -> set[str]:
    (wrong,) = (m for m in mutations.all_mistakes()[question] if m.name == name)
    with mutations.injected(wrong):
        return failed()


def test_it_passes_and_names_the_worst_element_in_both_vocabularies(monkeypatch):
    """With one of the networks that CI asks by `python -m parity --quick`."""
    monkeypatch.setattr(model, "QUICK", {"transposed": model.QUICK["transposed"]})
    answer = model.run(Settings(quick=True))
    assert answer.passed
    (row,) = (row for row in answer.rows if row.name == "transposed: 21 activations")
    assert " / " in row.worst
    assert " against " in row.worst


@pytest.mark.full
def test_a_biased_running_variance_shows_in_statistics_and_evaluation_only():
    evaluated = {"evaluation logits", "evaluation logits, BatchNorm folded"}
    expected = {"12 running statistics", "running statistics"} | evaluated  # the second with dropout
    assert broken_by("layers", "BatchNorm: running variance biased") == expected
