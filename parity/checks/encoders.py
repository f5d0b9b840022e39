"""The encoders question: does a U-Net with a ResNet compute, train and take pretrained weights as PyTorch's does?

- Layers that only a ResNet has: convolutions of stride 2, 3x3 max-pooling, nearest upsampling. The gate is that of the
  layers question, 1e-14. Pooling is compared by equality, with ties, and with NaN.
- Whole networks: every activation, every gradient, the running statistics, and evaluation. Sides that 32 divides, and
  others. The gate is 1e-12, as in the model question.
- Training with a frozen encoder and another learning rate for it, 1e-12. PyTorch's side is `requires_grad_(False)` with
  the encoder in evaluation, and two parameter groups. While it is frozen, the encoder stays as it is, bit for bit.
- Pretrained weights for 1 to 12 channels, by the rule of segmentation_models.pytorch. Networks here read blue, green,
  red, and the weights red, green, blue: the logits are those of PyTorch for the picture in its own order.
- A run from a command line with an encoder, as in the recipes question, with the first convolution 4 channels wide.

Networks are thinner than the published ones, and have all their blocks. Those that learn have 8 channels at first: with
4, the last decoder block has a single one, whose scale the next BatchNorm cancels, and its gradient is rounding. After
nine steps PyTorch's evaluation logits are then 1.7e-12 off if its first weights are half an ulp off; with 8, 1.7e-15.
`parity/reference/resnet.py` is written anew from the names of the weights. Not seen: segmentation_models.pytorch itself
(parity/README.md has a comparison).
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import torch
import torch.nn.functional as F

from jaxseg.base import cli
from jaxseg.base.config import Optimization
from jaxseg.learn import compiled, losses, step
from jaxseg.nn import resnet, torch_weights, unet
from parity.checks import recipes
from parity.checks.convolution_forms import elsewhere
from parity.checks.model import evaluated
from parity.judge import compare
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.reference import resnet as reference_resnet
from parity.reference.files import labels_of
from parity.twins import encoder_pairs, pairs, passes, recipe_files
from parity.twins import layer_pairs as layers
from parity.twins.layer_pairs import Case, normal
from parity.twins.quickly import QUICKLY, UNOPTIMIZED
from parity.twins.recipes import play
from parity.twins.trainers import Ours, Theirs, learned, running

QUESTION = "encoders"
LAYER_GATE = 1e-14
GATE = 1e-12
CASES = {  # encoder, channels of the first convolution, height and width
    "resnet18": ("resnet18", 8, (64, 96)),
    "resnet34, odd sides": ("resnet34", 8, (75, 50)),
    "resnet50": ("resnet50", 8, (96, 65)),
}
QUICK_CASES = {
    "resnet18, odd sides": ("resnet18", 8, (37, 66)),
    "resnet50": ("resnet50", 8, (96, 65), (2, 1, 1, 1)),
}
"""Likewise, and blocks in each stage where they are not the encoder's own: five in all compile quickly."""
SIZES = (3, 3, 2)
"""Valid samples in the batches of an epoch."""
FROZEN = Optimization(
    optimizer="adam", learning_rate=1e-3, weight_decay=1e-2, clip_norm=1.0, ema=0.9, epochs=8, warmup_epochs=1.0,
    freeze_encoder=1, encoder_lr_factor=0.3,
)  # fmt: skip
TRAININGS = {
    "Adam, frozen for an epoch": FROZEN,
    "SGD, a tenth of the rate": Optimization(
        optimizer="sgd", learning_rate=0.02, weight_decay=1e-2, epochs=8, warmup_epochs=1.0, encoder_lr_factor=0.1
    ),
}
COMMAND = (
    "--encoder resnet18 --epochs 6 --freeze-encoder 1 --encoder-lr-factor 0.5 --optimizer adamw --ema 0.9 "
    "--normalize encoder --encoder-mean 0.5 0.4 0.3 --encoder-std 0.2 0.25 0.3 --dropout 0.3 --batch-size 4"
)


def run(settings: Settings) -> Answer:
    """Answers the encoders question; only `settings.recipe` of its parts if that is given."""
    rng, seed = np.random.default_rng(settings.seed), settings.seed
    cases = QUICK_CASES if settings.quick else CASES
    trainings = list(TRAININGS.items())[: 1 if settings.quick else None]
    parts = {
        "layers": lambda: [*convolutions(rng), *pooling(rng), *first_convolutions(rng)],
        **{case[0]: partial(network_rows, seed, name, *case) for name, case in cases.items()},
        "training": lambda: [row for name, o in trainings for row in training_rows(name, o, seed)],
        "pretrained": lambda: pretrained_rows(seed),
        "command": command_rows,
    }
    with jax.enable_x64(True), mock.patch.dict(compiled.KEEP_BARRIERS, QUICKLY):
        return Answer(QUESTION, tuple(row for part in settings.recipe or parts for row in parts[part]()))


# Layers ---------------------------------------------------------------------------------------------------------------


def convolutions(rng: np.random.Generator) -> Iterator[Row]:
    """Rows for convolutions of stride 2, and for nearest upsampling."""

    def cases(size: int) -> dict[str, Case]:
        ours, theirs = partial(layers.conv, strides=2), partial(F.conv2d, stride=2, padding=size // 2)
        return {
            f"{h}x{w}": Case(ours, theirs, {"x": normal(rng, 2, 3, h, w), "kernel": normal(rng, 4, 3, size, size)})
            for h, w in ((8, 10), (9, 7))
        }

    names = {f"convolution {size}x{size} of stride 2": size for size in (7, 3, 1)}
    sides = layers.both({name: cases(size) for name, size in names.items()})
    theirs = partial(F.interpolate, scale_factor=2, mode="nearest")
    sides |= layers.both(
        {"nearest upsampling": {"": Case(layers.upsample_nearest, theirs, {"x": normal(rng, 2, 3, 4, 5)})}}
    )
    with elsewhere():
        sides |= layers.both({"convolution 7x7 of stride 2 in the form of a GPU": cases(7)})
    for name, side in sides.items():
        yield compare.close(QUESTION, name, *side, LAYER_GATE, each=True)


def pooling(rng: np.random.Generator) -> Iterator[Row]:
    """Rows for 3x3 max-pooling: values, and the pixels that get the gradient."""
    broken = np.round(normal(rng, 4, 3, 9, 8))
    broken[rng.random(broken.shape) < 0.2] = np.nan
    inputs = {
        "odd and even sides": normal(rng, 4, 3, 7, 8),
        "negative values": -1 - np.abs(normal(rng, 4, 3, 8, 9)),
        "all equal": np.full((4, 3, 7, 8), -0.5),
        "quantized values": np.round(normal(rng, 4, 3, 9, 8)),
        "NaN": broken,
    }
    pool = partial(F.max_pool2d, kernel_size=3, stride=2, padding=1)
    for name, sides in layers.both(
        {name: {"": Case(layers.max_pool_3x3, pool, {"x": x})} for name, x in inputs.items()}
    ).items():
        numbers = [{key: np.nan_to_num(x, nan=1e6) for key, x in side.items()} for side in sides]
        yield compare.close(QUESTION, f"max-pool 3x3, {name}", *numbers, 1e-15, measure=compare.max_abs, each=True)


def first_convolutions(rng: np.random.Generator) -> Iterator[Row]:
    """Row for pretrained weights of three channels, taken for other numbers of channels."""
    kernel = normal(rng, 8, 3, 7, 7)
    counts = (1, 2, 3, 4, 5, 12)
    found = {f"{n} channels": torch_weights.for_channels(kernel, n) for n in counts}
    expected = {f"{n} channels": reference_resnet.in_channels_of(torch.tensor(kernel), n).numpy() for n in counts}
    yield compare.close(QUESTION, "first convolution for 1 to 12 channels", found, expected, LAYER_GATE, each=True)


# Networks -------------------------------------------------------------------------------------------------------------


def network_rows(seed: int, name: str, encoder: str, base: int, size: tuple[int, int], depths=None) -> list[Row]:
    """Rows for one network: forwards, backwards, then in evaluation."""
    with of_depths(encoder, depths) if depths else contextlib.nullcontext():
        net, reference = encoder_pairs.networks(seed, encoder, base)
    (batch,) = pairs.batches(seed, [3], *size)
    padded = {key: np.concatenate([value, value[:1]]) for key, value in batch.items()}
    padded["valid"][-1], padded["mask"][-1] = False, losses.IGNORE_INDEX
    found = passes.ours(net, optimized=False)(net, padded)
    expected = passes.theirs(reference, padded, "float64")

    def row(what: str, a, b) -> Row:
        return compare.close(QUESTION, f"{name}: {what}", a, b, GATE, each=True)

    plain, folded, theirs = evaluated(net, found, reference, expected, padded)
    return [
        row("activations", found.outputs, expected.outputs),
        row("logits", found.logits, expected.logits),
        row("loss", found.loss, expected.loss),
        row("gradients of activations", found.output_gradients, expected.output_gradients),
        row("gradients", found.gradients, expected.gradients),
        row("running statistics", found.statistics, expected.statistics),
        row("evaluation logits", plain, theirs),
        row("evaluation logits, BatchNorm folded", folded, theirs),
    ]


@contextlib.contextmanager
def of_depths(encoder: str, depths: tuple[int, ...]) -> Iterator[None]:
    """Context in which both sides build `encoder` with so many blocks in its stages."""
    shorter = {encoder: dataclasses.replace(resnet.ARCHITECTURES[encoder], depths=depths)}
    with mock.patch.dict(resnet.ARCHITECTURES, shorter), mock.patch.dict(reference_resnet.DEPTHS, {encoder: depths}):
        yield


# Training -------------------------------------------------------------------------------------------------------------


def training_rows(name: str, o: Optimization, seed: int) -> Iterator[Row]:
    """Rows for three epochs of training a network on both sides."""
    data = pairs.batches(seed, list(SIZES) * 3, 64, 48)
    net, reference = encoder_pairs.networks(seed, "resnet18", 8)
    ours, theirs = Ours(o, net, len(SIZES)), Theirs(o, reference, len(SIZES))
    start = theirs.weights()
    ours.start(start)
    found, expected = [], []
    for i, batch in enumerate(data, start=1):
        found.append(ours.step(batch))
        expected.append(theirs.step(batch))
        if o.freeze_encoder and i == len(SIZES):
            held = [
                {key: x for key, x in side.items() if key.startswith("encoder.")} for side in (ours.weights(), start)
            ]
            yield compare.equal_bytes(QUESTION, f"{name}: the frozen encoder after an epoch", *held)

    def row(what: str, a, b) -> Row:
        return compare.close(QUESTION, f"{name}: {what}", a, b, GATE)

    weights, expected_weights = ours.weights(), theirs.weights()
    yield row("losses", np.array(found)[:, 0], np.array(expected)[:, 0])
    yield row("parameters", learned(weights), learned(expected_weights))
    yield row("running statistics", running(weights), running(expected_weights))
    yield row("evaluation logits", ours.logits(data[0]), theirs.logits(data[0]))


# Pretrained weights ---------------------------------------------------------------------------------------------------


def pretrained_rows(seed: int) -> Iterator[Row]:
    """Row for the logits of a network that took torchvision's, timm's or smp's names, for a picture in blue first."""
    _, reference = encoder_pairs.networks(seed, "resnet18", 4)
    whole = pairs.arrays(reference.state_dict())
    bare = {name.removeprefix("encoder."): x for name, x in whole.items() if name.startswith("encoder.")}
    bare |= {"fc.weight": np.ones((10, 32)), "fc.bias": np.ones(10)}
    spellings = {
        "torchvision's": bare,
        "smp's": whole,
        "smp's of timm": {name.replace("encoder.", "encoder.model.", 1): x for name, x in whole.items()},
    }
    image = np.random.default_rng(seed).integers(0, 256, (2, 64, 64, 3), np.uint8)  # red first
    with torch.no_grad():
        expected = reference.eval()(torch.from_numpy(image / 255).permute(0, 3, 1, 2)).numpy()
    found = {}
    for name, state in spellings.items():
        net = encoder_pairs.empty("resnet18", 4)
        torch_weights.from_torch(net, whole)
        net.encoder.conv1.kernel[...] *= 0  # so that the next line has to fill it
        torch_weights.encoder_from_torch(net, state, "rgb")
        predict = jax.jit(
            lambda image, net=net: unet.evaluation(net)(step.normalize(image, dtype=np.float64)),
            compiler_options=UNOPTIMIZED,
        )
        found[name] = pairs.nchw(predict(image[..., ::-1]))
    note = "PyTorch's network reads red first, jaxseg's blue first"
    yield compare.close(
        QUESTION, "pretrained weights by their names", found, dict.fromkeys(found, expected), GATE, note=note
    )


# A command line -------------------------------------------------------------------------------------------------------


def command_rows() -> Iterable[Row]:
    """Rows of a run with an encoder, put together as for a user."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, JAXSEG_CACHE_DIR=f"{folder}/cache"),
        encoder_pairs.thin(4),
    ):
        root = Path(folder) / "tiles"
        recipe_files.make(root, "uint8 color", "numbers", "large")
        _, reference = encoder_pairs.networks(1, "resnet18", 4)
        weights, file = reference.encoder.state_dict(), Path(folder) / "resnet18.pth"
        torch.save(weights, file)
        words = ["--data", str(root), "--workers", "0", "--encoder-weights", str(file), *COMMAND.split()]
        config = cli.parse(words)
        files = recipes.pairs_in(root, "train"), recipes.pairs_in(root, "val")
        labels = labels_of(config.data, [mask for part in files for _, mask in part])
        played = play(config, files, labels, 6)
        rows = list(recipes.played_rows(QUESTION, "a command line", config, played, COMMAND))
    given = {f"encoder.{name}": x.astype(np.float32) for name, x in pairs.arrays(weights).items()}
    given["encoder.conv1.weight"] = given["encoder.conv1.weight"][:, ::-1]
    start = {name: played.start[name].astype(np.float32) for name in given}
    elsewhere_asked = ("batches", "learning rates")
    yield compare.equal_bytes(QUESTION, "a command line: the encoder's weights at the start", start, given)
    yield from (row for row in rows if not row.name.endswith(elsewhere_asked))
