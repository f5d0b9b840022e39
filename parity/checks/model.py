"""The model question: does the network equal the reference in activations, loss, gradients, statistics, evaluation?

Both sides have the reference's weights and get one batch, in float64. The gate is 1e-12 for each tensor, relative in
the l2 norm. Roundings make 1e-16 to 1e-13, most in the deepest layers; the smallest mistake ever injected, eps 1e-6
instead of 1e-5, makes 3e-6. Gradients are those of the parameters and of every layer's output, so a mistake shows in
the layer that makes it. The batch is short (3 of 4 samples), which tests padding. Sizes are odd, which tests pooling
and the padding before skips.

Gradients of biases before a BatchNorm are zero in exact arithmetic. Both sides return noise there, which is compared
with the norm of the whole gradient.

Evaluation is asked twice: with BatchNorm, and folded into the convolutions as predictions have it.

Two of the networks are asked again with dropout and recomputation: see `parity/checks/dropping.py`.

Not seen: ties in pooling (see layers), and rounding (see precision). XLA compiles here without LLVM's optimizations,
which change only time and rounding.
"""

import dataclasses

import jax
import numpy as np
import torch

from jaxseg.learn import losses, step
from jaxseg.nn import folded, unet
from jaxseg.nn.torch_weights import from_torch
from jaxseg.nn.unet import UNet
from parity.checks import dropping
from parity.judge import compare
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.reference import losses as reference_losses
from parity.twins import pairs, passes
from parity.twins.quickly import UNOPTIMIZED

QUESTION = "model"
GATE = 1e-12


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, the height and width of its images, and the name of the loss in `jaxseg.learn.losses`."""

    widths: tuple[int, ...]
    size: tuple[int, int]
    upsample: str = "transpose"
    conv_bias: bool = True
    loss: str = "cross_entropy"


CASES = {
    "transposed": Case((8, 16, 32, 64, 128), (69, 54)),
    "bilinear": Case((8, 16, 32, 64, 128), (69, 54), "bilinear"),
    "no conv bias": Case((16, 32, 64), (69, 54), conv_bias=False),
    "bilinear, no conv bias, Dice": Case((16, 32, 64), (37, 30), "bilinear", conv_bias=False, loss="dice"),
    "base 32, Dice": Case((32, 64, 128), (21, 14), loss="dice"),
    "base 64": Case((64, 128), (11, 10)),
}
QUICK = {
    "transposed": Case((4, 8), (11, 10)),
    "bilinear, no conv bias, Dice": Case((4, 8), (11, 10), "bilinear", conv_bias=False, loss="dice"),
}


def run(settings: Settings) -> Answer:
    """Answers the model question."""
    rows = []
    with jax.enable_x64(True):
        for name, case in (QUICK if settings.quick else CASES).items():
            rows += case_rows(name, case, settings.seed)
    return Answer(QUESTION, tuple(rows))


def case_rows(name: str, case: Case, seed: int) -> list[Row]:
    """Rows for one network: forwards, backwards, then in evaluation."""
    options = {"upsample": case.upsample, "conv_bias": case.conv_bias}
    net, reference = pairs.networks(seed, "float64", case.widths, **options)
    (batch,) = pairs.batches(seed, [3], *case.size)
    padded = {key: np.concatenate([value, value[:1]]) for key, value in batch.items()}
    padded["valid"][-1], padded["mask"][-1] = False, losses.IGNORE_INDEX

    both = getattr(losses, case.loss), getattr(reference_losses, case.loss)
    found = passes.ours(net, both[0], optimized=False)(net, padded)
    expected = passes.theirs(reference, padded, "float64", both[1])
    names = passes.layer_names(reference)

    def row(what: str, found, expected, note: str = "") -> Row:
        return compare.close(QUESTION, f"{name}: {what}", found, expected, GATE, each=True, note=note)

    def layers(outputs: passes.Arrays) -> passes.Arrays:
        return {f"{key} / {names[key]}" if key in names else key: x for key, x in outputs.items()}

    rows = [
        row(f"{len(names)} activations", layers(found.outputs), layers(expected.outputs)),
        row("logits", found.logits, expected.logits),
        row("loss", found.loss, expected.loss, case.loss),
        row(
            f"gradients of {len(names)} activations", *map(layers, (found.output_gradients, expected.output_gradients))
        ),
        row(f"{len(expected.gradients)} gradients", found.gradients, expected.gradients),
        row(f"{len(expected.statistics)} running statistics", found.statistics, expected.statistics),
    ]
    if name in QUICK:
        net.dropout.rate, net.remat = dropping.RATE, True
        bottom = expected.outputs[f"down.{len(case.widths) - 1}.relu2"].shape
        rows += dropping.rows(row, net, reference, padded, both, bottom)
    plain, whole, theirs = evaluated(net, found, reference, expected, padded)
    rows += [row("evaluation logits", plain, theirs), row("evaluation logits, BatchNorm folded", whole, theirs)]
    if expected.known_zeros:
        note = "zero in exact arithmetic; relative to the whole gradient"
        what = f"{len(expected.known_zeros)} biases before BatchNorm"
        for side, noise in (("jaxseg", found), ("PyTorch", expected)):
            rows.append(
                compare.known_zero(QUESTION, f"{name}: {what}, {side}", noise.known_zeros, noise.gradients, GATE, note)
            )
    return rows


def evaluated(
    net: UNet, found: passes.Pass, reference: torch.nn.Module, expected: passes.Pass, batch: pairs.Batch
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluation logits [b k h w] of the valid samples: jaxseg's, jaxseg's folded, and the reference's.

    Each side has the running statistics of its own pass.
    """
    from_torch(net, pairs.arrays(reference.state_dict()) | found.statistics)
    both = unet.evaluation(net), folded.folded(net)
    logits = jax.jit(
        lambda image: [net(step.normalize(image)) for net in both],
        compiler_options=UNOPTIMIZED,
    )(batch["image"])
    reference.load_state_dict({key: torch.from_numpy(x) for key, x in expected.statistics.items()}, strict=False)
    with torch.no_grad():
        images, _ = pairs.for_torch(batch, "float64")
        return *(pairs.nchw(x)[batch["valid"]] for x in logits), reference.eval()(images).numpy()
