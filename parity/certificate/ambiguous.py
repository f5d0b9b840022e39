"""Layouts that shapes leave open, such as that of a square kernel, decided by what the modules compute."""

import dataclasses
from collections.abc import Iterator

from parity.certificate import layers
from parity.certificate.matching import Match
from parity.certificate.ours import Ours
from parity.certificate.pair import Pair


def resolved(pair: Pair, side: Ours) -> Pair:
    """The pair with the layouts under which the most modules agree in the first step."""

    def score(tried: Pair) -> tuple[int, bool, bool]:
        """Number of modules up to the first that differs; whether outputs agree; whether gradients do."""
        tried.restart(side)
        expected, found = tried.theirs().step(*pair.batches[0][0]), side.step(*pair.batches[0][1])
        compared = layers.lines(tried, expected, found)
        agreeing = next((i for i, line in enumerate(compared) if not line.forward.passed), len(compared))
        rows = {row.name.split(" of ")[0]: row.passed for row in layers.pass_rows(tried, expected, found)}
        return agreeing, rows["outputs in training"], rows["gradients"]

    best = score(pair)
    while not (best[1] and best[2]):
        for matches in _alternatives(pair.matches):
            tried = pair.rematched(matches)
            if (found := score(tried)) > best:
                pair, best = tried, found
                break
        else:
            break
    pair.restart(side)
    return pair


def _alternatives(matches: list[Match]) -> Iterator[list[Match]]:
    """Each open weight in each other layout; then all weights of a kind together."""
    open_ = [i for i, match in enumerate(matches) if match.others]
    for i in open_:
        for j in range(len(matches[i].others)):
            yield [_turned(match, j) if k == i else match for k, match in enumerate(matches)]
    for change in dict.fromkeys((matches[i].layout.name, matches[i].others[0].name) for i in open_):
        group = {i for i in open_ if (matches[i].layout.name, matches[i].others[0].name) == change}
        yield [_turned(match, 0) if k in group else match for k, match in enumerate(matches)]


def _turned(match: Match, j: int) -> Match:
    others = [other for i, other in enumerate(match.others) if i != j]
    return dataclasses.replace(match, layout=match.others[j], others=(*others, match.layout), by="outputs")
