"""The harness that injects mistakes can itself fail: it sees escapes, broken checks and mistakes that reach nothing."""

import inspect

import jax
import pytest

from jaxseg.learn import schedules
from jaxseg.nn import initializers, unet
from parity import mutations
from parity.checks import schedule
from parity.judge.compare import at_most
from parity.mistakes import Mistake, mistake
from parity.mutations import Cell


def row(name: str, passed: bool):
    return at_most("schedule", name, 0 if passed else 1, 0)


@pytest.fixture
def shifted():
    return mistake("late", schedules, "article", lambda right: lambda *a, **k: lambda tick: right(*a, **k)(tick - 1))


def test_a_mistake_is_there_inside_and_gone_outside(shifted):
    right = schedules.article
    with mutations.injected(shifted):
        assert float(schedules.article(1.0)(6)) == float(right(1.0)(5))
    assert schedules.article is right


def test_a_mistake_is_gone_after_an_exception(shifted):
    right = schedules.article
    with pytest.raises(KeyError), mutations.injected(shifted):
        raise KeyError
    assert schedules.article is right


def test_compiled_functions_are_forgotten_on_both_sides():
    compiled = jax.jit(lambda x: unet.max_pool(x))
    x = jax.numpy.arange(16.0).reshape(1, 4, 4, 1)
    before = compiled(x)
    with mutations.injected(mistake("zero", unet, "max_pool", lambda right: lambda x: 0 * right(x))):
        assert not compiled(x).any()
    assert (compiled(x) == before).all()


def test_the_real_check_catches_a_real_mistake(tmp_path, monkeypatch):
    curves = schedule.curves  # of all of them, the one with the mistake will do
    monkeypatch.setattr(schedule, "curves", lambda: {n: c for n, c in curves().items() if n.startswith("article: ")})
    names = [wrong.name for wrong in mutations.all_mistakes()["schedule"]]
    number = names.index("article: compounding removed")
    cell = mutations.try_one("schedule", number, "schedule", tmp_path, briefly=True)
    assert not cell.broke
    (failed,) = cell.failed  # it stops at the first
    assert "article" in failed


def test_a_check_that_breaks_has_caught_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(mutations, "ask", lambda *how: 1 / 0)
    cell = mutations.try_one("schedule", 0, "schedule", tmp_path)
    assert cell.failed == ()
    verdict = mutations.verdict(Mistake("x", ()), "schedule", {"schedule": cell}, reached=True)
    assert not verdict.passed
    assert "ZeroDivisionError" in verdict.worst


@pytest.mark.parametrize(("reached", "says"), [(True, "no row fails"), (False, "never calls")])
def test_an_escape_fails_and_says_why(reached, says):
    verdict = mutations.verdict(Mistake("x", ()), "model", {"model": Cell("model", 0, "model")}, reached)
    assert not verdict.passed
    assert says in verdict.worst


def test_being_seen_by_another_question_is_not_enough():
    seen = {"model": Cell("model", 0, "model"), "layers": Cell("model", 0, "layers", ("a",))}
    assert not mutations.verdict(Mistake("x", ()), "model", seen, reached=True).passed


def test_a_caught_mistake_names_the_rows():
    seen = {"model": Cell("model", 0, "model", ("a", "b")), "layers": Cell("model", 0, "layers", ("c",))}
    verdict = mutations.verdict(Mistake("x", ()), "model", seen, reached=True)
    assert verdict.passed
    assert "a; b" in verdict.note
    assert "layers 1" in verdict.note


def test_control_fails_when_a_row_fails_without_any_mistake():
    good, bad = [row("fine", True)], [row("fine", True), row("broken", False)]
    assert mutations.control_row({"schedule": good}).passed
    assert "schedule: broken" in mutations.control_row({"schedule": bad}).worst


def test_control_tells_which_mistakes_a_question_can_see(monkeypatch, tmp_path):
    def ask(question, data, briefly):
        schedules.per_epoch(schedules.constant(1.0), 2)
        if question == "init":
            assert initializers.RULES["article"].conv
        return []

    monkeypatch.setattr(mutations, "ask", ask)
    _, reached = mutations.control("schedule", tmp_path)
    names = {mutations.all_mistakes()[own][i].name for own, i in reached}
    assert "per_epoch: one step late" in names
    assert not names & {"article: one tick late", "article: Flax's he_normal"}
    _, reached = mutations.control("init", tmp_path)
    assert "article: Flax's he_normal" in {mutations.all_mistakes()[own][i].name for own, i in reached}


def test_every_mistake_has_a_name_of_its_own_and_something_to_replace():
    everything = [wrong for group in mutations.all_mistakes().values() for wrong in group]
    assert len(everything) >= 60
    for group in mutations.all_mistakes().values():
        assert len({wrong.name for wrong in group}) == len(group)
    for wrong in everything:
        assert wrong.patches
        assert all(hasattr(owner, attribute) for owner, attribute, _ in wrong.patches)


def test_every_mistake_takes_the_arguments_of_what_it_replaces():
    """A function that got a parameter since would end the check with an exception, which catches nothing."""
    stale = []
    for wrong, (owner, name, make) in ((m, p) for g in mutations.all_mistakes().values() for m in g for p in m.patches):
        right = getattr(owner, name)
        if inspect.isfunction(right) and right.__module__.startswith("jaxseg."):
            kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            given = [p for p in inspect.signature(right).parameters.values() if p.kind in kinds]
            try:
                inspect.signature(make(right)).bind_partial(*given)
            except TypeError as error:
                stale.append(f"{wrong.name}: {error}")
    assert stale == []


def test_parts_inject_every_mistake_once():
    only = ("schedule", "model")
    parts = [mutations.share(only, k, 4) for k in (1, 2, 3, 4)]
    for question in only:
        numbers = sorted(i for part in parts for i in part[question])
        assert numbers == list(range(len(mutations.all_mistakes()[question])))
    assert mutations.share(only, 5, 4) == parts[0]


def test_a_part_needs_the_controls_of_few_questions():
    questions = (*mutations.COLUMNS, *mutations.ALONE)
    asked = [sum(bool(group) for group in mutations.share(questions, k, 8).values()) for k in range(1, 9)]
    assert max(asked) <= 4


def test_rows_that_no_mistake_fails_are_named():
    cells = [
        Cell("model", 0, "model", ("a",)),
        Cell("model", 0, "layers", ("c",)),
        Cell("model", 1, "model", broke="x"),
    ]
    never = mutations.unfailed({"model": ["a", "b"], "layers": ["a", "c"]}, cells)
    assert never == {"model": ["b"], "layers": ["a"]}
    told = mutations.unfailed_row(never)
    assert not told.passed
    assert told.figure == 2
    assert told.worst == "model: b; layers: a"
    assert mutations.unfailed_row(mutations.unfailed({"model": ["a"], "layers": ["c"]}, cells)).passed


def test_rows_of_recipes_are_counted_by_what_they_show():
    cells = [Cell("recipes", 0, "recipes", ("recipe 0: losses",))]
    never = mutations.unfailed({"recipes": ["recipe 7: losses", "recipe 7: batches"]}, cells)
    assert never == {"recipes": ["recipe 7: batches"]}


def test_a_part_of_none_ends_with_2(capsys):
    assert mutations.main(["--part", "1", "0"]) == 2
    assert "expected K and N with N at least 1" in capsys.readouterr().err
