"""The training step: plain functions, and at the foot the lines that compile them.

A batch is {"image": [b h w c], "mask": uint8 [b h w], "valid": bool [b]}; images are as files have them, uint8, uint16,
int16 or float32. Samples that are not `valid` pad a short last batch to the full shape; their mask is `IGNORE_INDEX`,
and neither BatchNorm, loss, gradient nor metric sees them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Num, UInt8

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.learn import losses, optimizers
from jaxseg.learn.augment import Batch
from jaxseg.learn.losses import Loss
from jaxseg.learn.metrics import confusion_matrix, most_probable
from jaxseg.learn.schedules import Schedule
from jaxseg.nn.unet import UNet

Images = Num[Array | np.ndarray, "b h w c"]
Normalize = Callable[[Images], Float[Array, "b h w c"]]


def normalize(
    image: Num[Array | np.ndarray, "*shape c"],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Float[Array, "*shape c"]:
    """float32: the type's range made 0 to 1 (see `unit`), then (x - mean) / std, of which each has c numbers.

    Without mean and std equal bit for bit to NumPy's x / 255 and torchvision's `ToTensor`; with them within 1 ulp of
    torchvision's `Normalize`, because XLA turns the division into a product.
    """
    x = unit(image)
    mean, std = (None if y is None else jnp.array(y, x.dtype, ndmin=x.ndim) for y in (mean, std))
    x = x if mean is None else x - mean
    return x if std is None else x / std


def unit(image: Num[Array | np.ndarray, "*shape"]) -> Float[Array, "*shape"]:
    """uint8 / 255, uint16 / 65535, int16 / 32767, floats as they are; all to the bit, in float32.

    XLA turns a division by 255 into a product with 1/255, which is one ulp off for 126 of the 256 values. Here 1/255
    is the sum of a part of 17 bits, whose product with a byte is exact (below 2**24), and the rest.
    """
    x = jnp.asarray(image).astype(jnp.float32)
    if jnp.issubdtype(image.dtype, jnp.floating):
        return x
    if image.dtype.name not in PARTS:
        raise ValueError(f"images of type {image.dtype}; expected {', '.join(PARTS)} or floats")
    most, part = PARTS[image.dtype.name]
    return x * jnp.float32(part) + x * jnp.float32(1 / most - part)


PARTS = {"uint8": (255, float.fromhex("0x1.0101p-8")), "uint16": (65535, 2.0**-16), "int16": (32767, 2.0**-15)}
"""The largest value of a type, and the first bits of one over it."""


def step_key(seed: int, step: jax.typing.ArrayLike) -> jax.Array:
    """The randomness of a step follows from the run's seed and its number, so a resumed run draws the same."""
    return jax.random.fold_in(jax.random.key(seed), step)


DROPOUT = 2**31
"""Folded into the key of a step; augmentation splits that key, which is folding small numbers in."""


def loss_fn(
    model: UNet,
    batch: Batch,
    loss: Loss = losses.cross_entropy,
    normalize: Normalize = normalize,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The loss of a batch, and its logits; `key` is for dropout."""
    logits = model(normalize(batch["image"]), batch["valid"], key)
    return loss(logits, batch["mask"]), logits


def gradients(
    model: UNet, batch: Batch, key: jax.Array, loss: Loss, normalize: Normalize
) -> tuple[jax.Array, jax.Array, nnx.State]:
    """Loss, confusion matrix and gradient of a batch; moves the running statistics of `model`."""
    ask = nnx.value_and_grad(partial(loss_fn, loss=loss, normalize=normalize, key=key), has_aux=True)
    (value, logits), grads = ask(model, batch)
    return value, confusion_matrix(most_probable(logits), batch["mask"], logits.shape[-1]), grads


def accumulated_gradients(
    parts: int, model: UNet, batch: Batch, key: jax.Array, loss: Loss, normalize: Normalize
) -> tuple[jax.Array, jax.Array, nnx.State]:
    """`gradients` of a batch cut into `parts` of which one at a time is in memory; BatchNorm sees each by itself.

    A part counts as its share of the pixels that are not ignored: PyTorch's `(loss / parts).backward()` where all have
    as many, the mean over the whole batch where they have not. (A mean that is no plain one over these pixels, as with
    class weights or Dice, is taken in each part, as in PyTorch.) A part without any valid sample changes nothing.
    """
    if len(batch["mask"]) % parts:
        raise ValueError(f"a batch of {len(batch['mask'])} cannot be cut into {parts} equal parts")
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)

    def add(carry, part):
        (rest, total), (batch, share, key) = jax.lax.optimization_barrier((carry, part))  # one after the other
        net = nnx.merge(graphdef, params, rest, copy=True)
        value, confusion, grads = gradients(net, batch, key, loss, normalize)
        total = jax.tree.map(lambda total, grad: total + share.astype(grad.dtype) * grad, total, grads)
        return (nnx.state(net, nnx.Not(nnx.Param)), total), (share * value, confusion)

    start = (rest, jax.tree.map(jnp.zeros_like, params))
    given = (cut, shares(cut["mask"]), jax.random.split(key, parts))
    # unrolled on a CPU, where XLA's convolutions in a loop are 10 to 15 times slower
    (rest, grads), (values, confusions) = jax.lax.scan(add, start, given, unroll=jax.default_backend() == "cpu")
    nnx.update(model, rest)
    return values.sum(), confusions.sum(0), grads


def shares(masks: UInt8[Array, "parts b h w"]) -> Float[Array, "parts"]:
    """The share of each part in all the pixels that are not ignored; 0 where all are."""
    pixels = (masks != IGNORE_INDEX).sum((1, 2, 3))
    return pixels / jnp.maximum(pixels.sum(), 1)


def train_step(
    model: UNet,
    optimizer: nnx.Optimizer,
    batch: Batch,
    *,
    schedule: Schedule,
    loss: Loss = losses.cross_entropy,
    normalize: Normalize = normalize,
    augment: Callable[[jax.Array, Batch], Batch] | None = None,
    accumulate: int = 1,
    seed: int = 0,
) -> dict[str, jax.Array]:
    """One update of `model` and `optimizer`, in place; returns what the step saw, on the device.

    loss: float, of the pixels that count; learning_rate: what this update used; grad_norm: l2 of all gradients
    together, before any clipping; confusion: int32 [k k] of the predictions made on the way. Augmentation and dropout
    follow from `seed` and the step alone. `accumulate`: parts into which the batch is cut; they divide it.
    """
    step = optimizer.step[...]
    key = step_key(seed, step)
    if augment is not None:
        batch = augment(key, batch)
    ask = gradients if accumulate == 1 else partial(accumulated_gradients, accumulate)
    value, confusion, grads = ask(model, batch, jax.random.fold_in(key, DROPOUT), loss, normalize)
    optimizer.update(model, grads)
    return {
        "loss": value,
        "learning_rate": jnp.asarray(schedule(step) * optimizers.rate_scale(optimizer), jnp.float32),
        "grad_norm": optax.tree.norm(grads),
        "confusion": confusion,
    }


def eval_step(
    model: UNet, batch: Batch, *, loss: Loss = losses.cross_entropy, normalize: Normalize = normalize
) -> dict[str, jax.Array]:
    """Loss (of the pixels that count), confusion matrix and predictions of a batch; `model` in evaluation."""
    value, logits = loss_fn(model, batch, loss, normalize)
    predictions = most_probable(logits)
    confusion = confusion_matrix(predictions, batch["mask"], logits.shape[-1])
    return {"loss": value, "confusion": confusion, "predictions": predictions.astype(jnp.uint8)}


def predict_step(model: UNet, image: Images, *, normalize: Normalize = normalize) -> UInt8[Array, "b h w"]:
    """The most probable class of every pixel; `model` in evaluation."""
    return most_probable(model(normalize(image))).astype(jnp.uint8)


def probability_step(model: UNet, image: Images, *, normalize: Normalize = normalize) -> Float[Array, "b h w k"]:
    """The probability of every class, float32, at every pixel; `model` in evaluation."""
    return jax.nn.softmax(model(normalize(image))).astype(jnp.float32)


# Compiled -------------------------------------------------------------------------------------------------------------
