"""The training step as JAX hands it to XLA for an NVIDIA GPU, lowered on any machine: none of the slow forms is in it.

Lowering compiles nothing and draws nothing, so this is cheap; what XLA then makes of it is not seen. Every property
has a plain form beside it that breaks it.
"""

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_convolution import expanded

from jaxseg.base.config import Augmentation, Model, Optimization
from jaxseg.learn import augment, losses, optimizers, schedules
from jaxseg.learn import step as steps
from jaxseg.learn.compiled import compile_train_step
from jaxseg.nn import layers, unet

BATCH, SIDE, WIDTHS = 2, 16, (4, 8)
PIXELS = BATCH * SIDE * SIDE
LAYOUTS = {
    "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]",
    "[b, 0, 1, f]x[0, 1, o, i]->[b, 0, 1, f]",  # gradient of the input
    "[f, 0, 1, b]x[i, 0, 1, o]->[0, 1, b, f]",  # gradient of the kernel
}
"""Images `b h w c` in all of them, so that cuDNN's tensor cores take them as they are."""
FUSED = {
    "add",
    "broadcast_in_dim",
    "compare",
    "convert",
    "divide",
    "maximum",
    "multiply",
    "negate",
    "reduce",
    "reshape",
}
FUSED |= {"select", "slice", "subtract"}
"""What XLA fuses: float32 between these, as in BatchNorm, stays in registers."""
NETWORKS = {
    "float32": Model(WIDTHS),
    "bfloat16": Model(WIDTHS, precision="bf16"),
    "bilinear": Model(WIDTHS, upsample="bilinear", precision="bf16"),
    "dropout, no bias": Model(WIDTHS, conv_bias=False, dropout=0.1, precision="bf16"),
    "remat": Model(WIDTHS, remat=True, precision="bf16"),
}
SGD = Optimization(optimizer="sgd")
LOSSES = ("dice", "dice_ce", "focal", "hinge", "jaccard", "lovasz", "mse", "tversky")
CHANGES = ("zoom", "brightness", "contrast", "noise", "blur")


@pytest.fixture(autouse=True)
def _on_a_gpu(monkeypatch):
    """Where the code asks for the backend, it is told that of the lowering."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def lowered(settings: Model = NETWORKS["bfloat16"], optimizer: Optimization = SGD, image: str = "uint8", **how) -> str:
    """StableHLO of the compiled step for CUDA. Nothing is allocated: weights and batch are shapes."""

    def start():
        net = unet.unet_from(settings, in_channels=3, classes=2, seed=0)
        return net, nnx.Optimizer(net, optimizers.optimizer_from(optimizer, schedules.constant(1e-3)), wrt=nnx.Param)

    how = {"schedule": schedules.constant(1e-3), "loss": losses.cross_entropy} | how
    step = compile_train_step(*nnx.eval_shape(start), **how)
    tile = (BATCH, SIDE, SIDE)
    batch = {"image": jax.ShapeDtypeStruct((*tile, 3), image), "mask": jax.ShapeDtypeStruct(tile, "uint8")}
    batch["valid"] = jax.ShapeDtypeStruct((BATCH,), "bool")
    return step.trace(batch).lower(lowering_platforms=("cuda",)).as_text()


def lowered_loss(loss: losses.Loss) -> str:
    """StableHLO of a loss and its gradient."""
    logits = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 2), "float32")
    labels = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE), "uint8")
    return jax.jit(jax.value_and_grad(loss)).trace(logits, labels).lower(lowering_platforms=("cuda",)).as_text()


def operations(text: str) -> Counter:
    return Counter(re.findall(r"(?<!#)\bstablehlo\.(\w+)", text))


def convolutions(text: str) -> int:
    """That one run of the program computes."""
    return operations(expanded(text))["convolution"]


def faults(text: str) -> set[str]:
    """Which slow forms are in a step."""
    found = operations(text)
    arguments = re.search(r"func\.func public @main\((.*?)\) -> ", text)[1].split("%arg")[1:]
    kept = [argument for argument in arguments if "tf.aliasing_output" not in argument]
    given = sorted(re.search(r"tensor<(?:\d+x)*(\w+)>", argument)[1] for argument in kept)
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    checks = {
        "scatter": found["scatter"] + found["select_and_scatter"],
        "dilated convolution": sum("lhs_dilate = [1, 1], rhs_dilate = [1, 1]" not in line for line in convolutions),
        "layout": sum(re.search(r"dim_numbers = (.*?), window", line)[1] not in LAYOUTS for line in convolutions),
        "float64": len(re.findall(r"[<x]f64>", text)),
        "foreign call": sum(name != "LayoutConstraint" for name in re.findall(r"custom_call @(\w+)", text)),
        "arguments": given != ["i1", "ui8", "ui8"],  # all others are donated
        "float32 in memory": len(wide(text)) if "bf16" in text else 0,
    }
    return {name for name, wrong in checks.items() if wrong}


def wide(text: str) -> list[str]:
    """Lines of operations with kernels of their own that take or give activations of full resolution in float32.

    Images and logits are not wide: they have fewer channels than the first level.
    """

    def is_wide(shape: str) -> bool:
        *sizes, dtype = shape.split("x")
        return dtype == "f32" and math.prod(map(int, sizes)) >= PIXELS * WIDTHS[0]

    lines = [
        line for line in text.splitlines() if (name := re.search(r"= stablehlo\.(\w+)", line)) and name[1] not in FUSED
    ]
    return [line for line in lines if any(map(is_wide, re.findall(r"tensor<([^>]*)>", line)))]


# The step as it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_has_a_slow_form(name):
    text = lowered(NETWORKS[name])
    assert faults(text) == set()
    assert convolutions(text) >= 17  # of 6 and perhaps the last: forwards, kernels, inputs but the first


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_has_a_slow_form_but_one_that_sorts(name):
    text = lowered_loss(losses.loss_from(Optimization(loss=name)))
    assert faults(text) - {"arguments"} == ({"scatter"} if name == "lovasz" else set())
    assert operations(text)["scatter"] <= 1  # Lovasz sorts pixels and puts them back where they were


def test_hard_examples_and_class_weights_need_no_scatter():
    text = lowered_loss(losses.loss_from(Optimization(ohem=0.3), class_weights=(1.0, 2.0)))
    assert faults(text) - {"arguments"} == set()


def test_no_augmentation_has_a_slow_form():
    everything = Augmentation(**dict.fromkeys(CHANGES, 0.3))
    assert faults(lowered(augment=augment.augment_from(everything, steps.unit))) == set()


def test_flips_and_turns_stay_bytes_and_gather_nothing():
    text = lowered(augment=augment.augment_from(Augmentation(), steps.unit))
    assert faults(text) == set()
    assert operations(text)["gather"] == 0
    reversed_types = re.findall(r"stablehlo\.reverse .*tensor<2x16x16(?:x3)?x(\w+)>", text)
    assert set(reversed_types) == {"ui8"}


def test_accumulation_is_one_loop():
    text = lowered(accumulate=2)
    assert faults(text) == set()
    assert operations(text)["while"] == 1


def test_everything_an_optimizer_keeps_is_donated():
    settings = Optimization(clip_norm=1.0, ema=0.9, schedule="plateau")
    assert faults(lowered(optimizer=settings)) == set()


def test_matrix_products_are_those_of_the_layers_and_of_bilinear_interpolation():
    upward = len(WIDTHS) - 1
    transposed, bilinear = (operations(lowered(NETWORKS[name]))["dot_general"] for name in ("bfloat16", "bilinear"))
    assert transposed in (3 * upward, 3 * upward + 3)  # with the last convolution, if it is a product too
    assert bilinear - transposed == upward  # rows, columns, and both backwards, in the stead of three


# Plain forms put back, and mistakes -----------------------------------------------------------------------------------


def channels_first(monkeypatch):
    def call(self, x):
        kernel = self.kernel[...].astype(self.dtype)
        x = jnp.moveaxis(x.astype(self.dtype), 3, 1)
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "NCHW"))
        return layers._add_bias(jnp.moveaxis(y, 1, 3), self.bias[...])

    monkeypatch.setattr(layers.Conv, "__call__", call)
    return {}


def float32_between_layers(monkeypatch):
    plain = layers.BatchNorm._apply

    def apply(self, *args):
        self.dtype = jnp.float32
        return plain(self, *args)

    monkeypatch.setattr(layers.BatchNorm, "_apply", apply)
    return {}


def float64_statistics(monkeypatch):
    def metric(predictions, labels, classes):
        return jnp.zeros((classes, classes), np.float64) + predictions.sum()

    monkeypatch.setattr(steps, "confusion_matrix", metric)
    return {}


def float_images(monkeypatch):
    return {"image": "float32"}


def plain_pooling(monkeypatch):
    monkeypatch.setattr(unet, "max_pool", lambda x: nnx.max_pool(x, (2, 2), (2, 2)))


def plain_cross_entropy(monkeypatch):
    def call(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32)).mean()

    monkeypatch.setattr(losses, "cross_entropy", call)


def dilated_up(monkeypatch):
    def call(self, x):
        kernel = jnp.flip(self.kernel[...].astype(self.dtype), (0, 1))
        y = jax.lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return layers._add_bias(y, self.bias[...])

    monkeypatch.setattr(layers.UpConv, "__call__", call)


def undonated(monkeypatch):
    compiled = nnx.jit_partial
    monkeypatch.setattr(nnx, "jit_partial", lambda *args, donate_argnums, **how: compiled(*args, **how))


@pytest.mark.parametrize(
    ("rewrite", "found"),
    [
        (plain_pooling, {"scatter"}),
        (plain_cross_entropy, {"scatter"}),
        (dilated_up, {"dilated convolution"}),
        (undonated, {"arguments"}),
    ],
)
def test_a_plain_form_is_seen(rewrite, found, monkeypatch):
    rewrite(monkeypatch)
    assert faults(lowered()) == found


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        (channels_first, {"layout"}),
        (float32_between_layers, {"float32 in memory"}),
        (float64_statistics, {"float64"}),
        (float_images, {"arguments"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_mistake_is_seen(monkeypatch, mistake, found):
    how = mistake(monkeypatch)
    with jax.enable_x64("float64" in found):
        assert faults(lowered(**how)) == found


def test_a_call_to_the_host_cannot_even_be_lowered():
    def printing(image):
        jax.debug.print("{}", image.max())
        return steps.normalize(image)

    with pytest.raises(ValueError, match="cpu is different from the lowering platform cuda"):
        lowered(normalize=printing)
