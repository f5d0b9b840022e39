"""`certify`, and the certificate that it returns."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import torch

from jaxseg.base.files import replace
from parity.certificate import ambiguous, causes, injected, layers, page, rounding, terminal, theirs, training
from parity.certificate.causes import Cause
from parity.certificate.layers import Line
from parity.certificate.matching import Rules
from parity.certificate.pair import Pair, pair_of
from parity.certificate.training import Run
from parity.judge.compare import Row
from parity.report.environment import environment


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Results of `certify`: `passed`, `show()`, `save(path)`, and all that they show."""

    pair: Pair
    rows: tuple[Row, ...]
    lines: tuple[Line, ...]
    """Modules in PyTorch's order of computation."""
    first: Line | None
    """The first module that differs."""
    causes: tuple[Cause, ...]
    """Likely causes, those that were confirmed first."""
    runs: tuple[Run, Run]
    """PyTorch's training and the twin's, in float64."""
    float32: Mapping[str, Any]
    """Distances in float32 (see `rounding.Rounding`); empty if the formulas differ."""
    mistakes: tuple[injected.Injected, ...]
    unseen: tuple[str, ...]
    """Limits of this certificate, a sentence each."""
    facts: Mapping[str, Mapping[str, str]]
    """Versions, machine and what was asked."""

    @property
    def passed(self) -> bool:
        """True if every row passes."""
        return all(row.passed for row in self.rows)

    @property
    def verdict(self) -> str:
        """A sentence: all rows pass, or the first difference and its likeliest cause."""
        failed = [row for row in self.rows if not row.passed]
        if not failed:
            steps = len(self.runs[0].steps)
            trained = f", {steps} training steps" if self.pair.optimizers[0] else ""
            return (
                f"The twin does what the PyTorch model does: {len(self.lines)} modules{trained}, {len(self.rows)} rows"
            )
        where = f"{self.first.name} ({self.first.kind}) is the first to differ" if self.first else failed[0].name
        prefix = f"{self.first.name}: " if self.first else ""
        cause = f": {self.causes[0].what.removeprefix(prefix)}" if self.causes else ""
        return f"{len(failed)} of {len(self.rows)} rows fail; {where}{cause}"

    def show(self) -> None:
        """Prints the certificate on the terminal."""
        terminal.show(self)

    def save(self, path: str | Path = "certificate.html") -> Path:
        """Writes the certificate as one HTML file that needs no other. Raises OSError."""
        replace(Path(path), page.write(self).encode())
        return Path(path)


def certify(
    torch_model: torch.nn.Module,
    twin: Any,
    batch: Any,
    *,
    loss: Any = None,
    optimizer: Any = None,
    rules: Rules = "auto",
    steps: int = 50,
    layout: str = "auto",
    weights_from: str = "torch",
    mistakes: bool = True,
) -> Certificate:
    """Compares a PyTorch model with its twin in JAX, module by module and step by step, and says where they differ.

    Weights are copied from the one into the other. Neither is changed; dropout is switched off in both.

    - `torch_model`: any module; is called with the inputs of the batch
    - `twin`: an `nnx.Module`, `(linen_module, variables)` or `(function, params)` with function(params, *inputs).
      Arguments named train, training, is_training, deterministic or use_running_average are given
    - `batch`: (inputs, target) as PyTorch takes them, arrays or tensors; several inputs as a tuple. A list of such
      pairs is several batches, taken in turn
    - `loss`: "cross_entropy", "mse", "l1", "binary_cross_entropy_with_logits", or a pair of functions of (output,
      target), PyTorch's and JAX's. Without one, gradients are those of a fixed projection of the outputs
    - `optimizer`: "sgd", "momentum", "adam", "adamw", one of these with its rate as ("adam", 1e-3), or a pair:
      a function of the parameters that returns PyTorch's, and Optax's, which sees a flat dict by name
    - `rules`: "auto", or weights by name: {r"^fc\\.weight$": ("head.kernel", (1, 0))} (see `matching.matched`)
    - `steps`: training steps; 1 without an optimizer
    - `layout`: what the twin gets: "same", "channels last", or "auto" to decide by what runs
    - `weights_from`: "torch", or "twin" to copy the twin's weights into the PyTorch model
    - `mistakes`: whether to inject mistakes into the twin, to show what the certificate sees

    Raises ArgumentError for arguments that are wrong, and MatchError for weights without a counterpart, all at once.

    >>> import numpy, torch
    >>> from flax import nnx
    >>> from parity import certify
    >>> reference = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> twin = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    >>> batch = numpy.random.default_rng(0).normal(size=(8, 4)), numpy.arange(8) % 3
    >>> report = certify(reference, twin, batch, loss="cross_entropy", optimizer="sgd", steps=3, mistakes=False)
    >>> report.passed
    True
    """
    began = time.monotonic()
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        pair = pair_of(torch_model, twin, batch, loss, optimizer, rules, layout, weights_from)
        steps = max(steps, 1) if pair.optimizers[0] else 1
        side = pair.ours()
        pair = ambiguous.resolved(pair, side)
        expected = training.run(pair.theirs(), pair.batches_of(0), steps)
        found = training.run(side, pair.batches_of(1), steps)
        rows = training.rows(pair, expected, found)
        lines = layers.lines(pair, expected.steps[0], found.steps[0])
        wrong = [row.name for row in rows if not row.passed]
        first, passed = layers.first_difference(lines, wrong[:1]), not wrong
        reasons = [] if passed else causes.likely(pair, expected, found, first, rows)
        tried = injected.inject(pair) if passed and mistakes else []
    float32 = {}
    if passed:
        with jax.enable_x64(False), jax.default_device(jax.devices("cpu")[0]):
            more, float32 = rounding.measure(pair, expected, steps)
            reasons = causes.of_rounding(pair, more, expected, steps)
            rows += more
    asked = {
        "model": type(torch_model).__name__,
        "twin": f"{pair.twin.kind}, {type(twin[0] if isinstance(twin, tuple) else twin).__name__}",
        "inputs": ", ".join(str(x.shape) for x in pair.batches[0][0][0]),
        "the twin's inputs": ", ".join(str(x.shape) for x in pair.batches[0][1][0]),
        "loss": _name(loss),
        "optimizer": _described(pair),
        "steps": str(steps),
        "seconds": f"{time.monotonic() - began:.0f}",
    }
    unseen = limits(pair, lines, tried, passed and mistakes)
    facts = {"asked": asked} | environment()
    return Certificate(
        pair, tuple(rows), tuple(lines), first, tuple(reasons), (expected, found), float32, tuple(tried), unseen, facts
    )


def limits(pair: Pair, lines: list[Line], tried: list[injected.Injected], injecting: bool) -> tuple[str, ...]:
    """Sentences on what the certificate cannot see."""
    shapes = ", ".join(str(x.shape) for x in pair.batches[0][0][0])
    found = [f"Other inputs than those given, and other shapes than {shapes}."]
    if dropped := theirs.dropouts(pair.model):
        found.append(f"Dropout, which is switched off on both sides: {', '.join(dropped)}.")
    found.append("How weights are drawn at the start, and how data are read: both sides get the same.")
    if pair.optimizers[0] is None:
        found.append("Training: no optimizer was given.")
    if not lines:
        named = "`parity.certificate.recorder.named`"
        found.append(f"Where inside the twin a difference begins: no module is on both sides. {named} marks values.")
    if injecting and (escaped := [mistake.name for mistake in tried if not mistake.failed]):
        found.append(f"Injected mistakes that no row saw: {', '.join(escaped)}.")
    return tuple(found)


def _name(loss: Any) -> str:
    """Name of a loss, or of a pair of functions."""
    if isinstance(loss, tuple):
        return " and ".join(getattr(function, "__name__", str(function)) for function in loss)
    return loss or "a projection of the outputs"


def _described(pair: Pair) -> str:
    """PyTorch's optimizer with its constants."""
    if pair.optimizers[0] is None:
        return "none"
    optimizer = pair.optimizers[0](list(pair.model.parameters()))
    numbers = {key: x for key, x in optimizer.param_groups[0].items() if isinstance(x, int | float | tuple) and x}
    constants = ", ".join(f"{key} {x}" for key, x in numbers.items() if not isinstance(x, bool))
    return f"{type(optimizer).__name__}, {constants}"
