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


def test_a_biased_running_variance_shows_in_statistics_and_evaluation_only():
    evaluated = {"evaluation logits", "evaluation logits, BatchNorm folded"}
    expected = {"12 running statistics", "running statistics"} | evaluated  # the second with dropout
    assert broken_by("layers", "BatchNorm: running variance biased") == expected


@pytest.mark.parametrize("mistake", ["skip connection second", "padding seen by the whole network"])
def test_a_network_put_together_wrongly_shows_in_logits_and_gradients(mistake, monkeypatch):
    first = next(iter(model.QUICK))
    monkeypatch.setattr(model, "QUICK", {first: model.QUICK[first]})
    found = broken_by("model", mistake)
    assert {"logits", "loss"} <= found
    assert any("gradients" in row for row in found)
