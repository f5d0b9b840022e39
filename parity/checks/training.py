"""Does training go where the reference's goes?

In float64, ten steps of the very function that the trainer compiles (momentum, weight decay, a learning rate that
changes each step, every fifth batch short and padded) against ten of the reference's. Two steps with weight decay and
a changing rate are the least that tell coupled decay from decoupled and the learning rate's place from its
neighbor's. Roundings do not grow there, so the gates are 1e-12 for SGD, and 1e-9 for Adam, which divides the noise in
gradients that ought to be zero by its eps. Evaluation afterwards sees what the loss does not: running statistics.

In float32 roundings do grow, in PyTorch as well, and a fixed tolerance means nothing: the figure is the distance from
the reference after ten steps over the reference's distance from itself when something changes that ought not to
matter (images of the batch in another order, one weight moved by one ulp, channels_last), and the gate is 3. A branch
of one ReLU can make any one of these distances jump a thousandfold, hence the largest over several seeds on both
sides.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from jaxseg import optim, schedules
from jaxseg.convert import from_torch, to_torch
from jaxseg.model import UNet
from jaxseg.schedules import Schedule
from jaxseg.step import compile_train_step, normalize
from parity import compare, pairs
from parity.answer import Answer, Settings
from parity.compare import Row
from parity.reference.scheduler import WarmupCosineScheduler
from parity.reference.training import set_learning_rate, training_step

QUESTION = "training"
STEPS = 10
SIZES = [4, 4, 4, 4, 2] * 2  # valid samples in the batches
DEEP, SHALLOW = (8, 16, 32, 64, 128), (8, 16)
SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The same optimizer on both sides; `gate` is for float64."""

    name: str
    widths: tuple[int, ...]
    peak: float
    ours: Callable[[Schedule], optax.GradientTransformation]
    theirs: Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]
    gate: float
    conv_bias: bool = True


SGD = Recipe(
    "SGD, momentum, weight decay",
    DEEP,
    0.05,
    lambda schedule: optim.sgd(schedule, 0.9, weight_decay=1e-2),
    lambda parameters: torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=1e-2),
    1e-12,
)
NESTEROV = Recipe(
    "SGD, nesterov",
    SHALLOW,
    0.05,
    lambda schedule: optim.sgd(schedule, 0.9, nesterov=True),
    lambda parameters: torch.optim.SGD(parameters, lr=0.0, momentum=0.9, nesterov=True),
    1e-12,
    conv_bias=False,
)
ADAM = Recipe("Adam", DEEP, 1e-3, optim.adam, lambda parameters: torch.optim.Adam(parameters, lr=0.0), 1e-9)
ADAM_DECAY = Recipe(
    "Adam, weight decay",
    SHALLOW,
    1e-3,
    lambda schedule: optim.adam(schedule, weight_decay=1e-2),
    lambda parameters: torch.optim.Adam(parameters, lr=0.0, weight_decay=1e-2),
    1e-9,
    conv_bias=False,
)
ADAMW = Recipe(
    "AdamW",
    SHALLOW,
    1e-3,
    optim.adamw,
    lambda parameters: torch.optim.AdamW(parameters, lr=0.0),
    1e-9,
    conv_bias=False,
)


def run(settings: Settings) -> Answer:
    """The training question."""
    seed = settings.seed
    with jax.enable_x64(True):
        rows = [row for recipe in (SGD, NESTEROV, ADAM, ADAM_DECAY, ADAMW) for row in exact_rows(recipe, seed)]
    with jax.enable_x64(False):
        rows += [envelope_row(recipe, seed) for recipe in (SGD, ADAM)]
    return Answer(QUESTION, tuple(rows))


def exact_rows(recipe: Recipe, seed: int) -> list[Row]:
    """Ten steps in float64 on both sides."""
    data = pairs.batches(seed, SIZES, 48, 32)
    net, reference = pairs.networks(seed, "float64", recipe.widths, conv_bias=recipe.conv_bias)
    losses, rates = Ours(recipe, net).train(reference.state_dict(), data)
    expected_losses, expected_rates = train_reference(recipe, reference, data, "float64")
    evaluated = nnx.view(net, use_running_average=True)(normalize(data[0]["image"]))
    with torch.no_grad():
        expected_evaluated = reference.eval()(pairs.for_torch(data[0], "float64")[0])
    statistics, expected_statistics = (
        select(s, "running") for s in (to_torch(net), pairs.arrays(reference.state_dict()))
    )
    parameters, expected_parameters = learned(to_torch(net)), learned(pairs.arrays(reference.state_dict()))

    def row(what: str, found, expected) -> Row:
        return compare.close(QUESTION, f"{recipe.name}: {what}", found, expected, recipe.gate)

    return [
        compare.equal_bytes(QUESTION, f"{recipe.name}: learning rates", rates, expected_rates.astype(np.float32)),
        row(f"losses of {STEPS} steps", losses, expected_losses),
        row("parameters", parameters, expected_parameters),
        row("running statistics", statistics, expected_statistics),
        row("evaluation logits", pairs.nchw(evaluated), expected_evaluated.numpy()),
    ]


def envelope_row(recipe: Recipe, seed: int) -> Row:
    """The largest distance over the seeds, against the largest of the reference from itself."""
    found, baselines = [], {name: [] for name in VARIATIONS}
    ours = Ours(recipe, pairs.networks(seed, "float32", recipe.widths)[0])
    for each in range(seed, seed + SEEDS):
        data = pairs.batches(each, SIZES, 64, 64)
        _, reference = pairs.networks(each, "float32", recipe.widths)
        start = {key: value.clone() for key, value in reference.state_dict().items()}
        train_reference(recipe, reference, data, "float32")
        expected = learned(pairs.arrays(reference.state_dict()))
        ours.train(start, data)
        found.append(compare.relative_l2(learned(to_torch(ours.net)), expected))
        for name, vary in VARIATIONS.items():
            reference.load_state_dict(start)
            varied = vary(reference, data)
            train_reference(recipe, reference, varied, "float32", channels_last=name == "channels_last")
            reference.to(memory_format=torch.contiguous_format)
            baselines[name].append(compare.relative_l2(learned(pairs.arrays(reference.state_dict())), expected))
    note = f"parameters after {STEPS} steps, largest of {SEEDS} seeds, over PyTorch's distance from itself"
    # NumPy's max, because Python's passes over a NaN
    largest = {name: float(np.max(distances)) for name, distances in baselines.items()}
    return compare.envelope(QUESTION, f"{recipe.name}: float32", float(np.max(found)), largest, factor=3.0, note=note)


class Ours:
    """jaxseg's side of a recipe: the trainer's step, compiled once, to be trained from any weights."""

    def __init__(self, recipe: Recipe, net: UNet):
        # the article's schedule, a tick a step: it changes at every one
        schedule = schedules.article(recipe.peak, warmup=3, total=2 * STEPS, begin_lr=recipe.peak / 10)
        self.net, self.optimizer = net, nnx.Optimizer(net, recipe.ours(schedule), wrt=nnx.Param)
        self._fresh = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(self.optimizer)))
        self._step = compile_train_step(net, self.optimizer, schedule=schedule)

    def train(self, weights: dict[str, torch.Tensor], data: list[pairs.Batch]) -> tuple[np.ndarray, np.ndarray]:
        """A step for each batch, from `weights` and a fresh optimizer; losses and learning rates."""
        from_torch(self.net, weights)
        nnx.update(self.optimizer, jax.tree.map(jnp.array, self._fresh))
        records = jax.device_get([self._step(jax.tree.map(jnp.asarray, batch)) for batch in data])
        return np.array([r["loss"] for r in records]), np.array([r["learning_rate"] for r in records])


def train_reference(
    recipe: Recipe, reference: torch.nn.Module, data: list[pairs.Batch], dtype: str, channels_last: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The same of the reference, whose scheduler is asked once a step."""
    scheduler = WarmupCosineScheduler(
        recipe.peak, warmup_epochs=3, max_epochs=2 * STEPS, warmup_begin_lr=recipe.peak / 10
    )
    optimizer = recipe.theirs(reference.parameters())
    losses, rates = [], []
    for i, batch in enumerate(data):
        rates.append(scheduler(i))
        set_learning_rate(optimizer, rates[-1])
        images, masks = pairs.for_torch(batch, dtype)
        if channels_last:
            images = images.to(memory_format=torch.channels_last)
        losses.append(float(training_step(reference, optimizer, images, masks)))
    return np.array(losses), np.array(rates)


def _permuted(reference: torch.nn.Module, data: list[pairs.Batch]) -> list[pairs.Batch]:
    """Samples in reverse; means do not depend on the order."""
    return [{key: value[::-1].copy() for key, value in batch.items()} for batch in data]


def _one_ulp(reference: torch.nn.Module, data: list[pairs.Batch]) -> list[pairs.Batch]:
    with torch.no_grad():
        weight = reference.inc.double_conv[0].weight.view(-1)
        weight[0] = torch.nextafter(weight[0], torch.tensor(np.inf))
    return data


def _channels_last(reference: torch.nn.Module, data: list[pairs.Batch]) -> list[pairs.Batch]:
    reference.to(memory_format=torch.channels_last)
    return data


VARIATIONS = {"permuted batch": _permuted, "one ulp": _one_ulp, "channels_last": _channels_last}


def select(state: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    """The arrays whose name contains `part`."""
    return {key: value for key, value in state.items() if part in key}


def learned(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without running statistics."""
    return {key: value for key, value in state.items() if "running" not in key}
