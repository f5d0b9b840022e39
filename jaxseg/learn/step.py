"""The training step, as plain functions; `jaxseg.learn.compiled` compiles them.

A batch is a dict of
- "image": [b h w c], as files have it: uint8, uint16, int16 or float32
- "mask": uint8 [b h w], classes or `IGNORE_INDEX`
- "valid": bool [b], False for samples that only pad a short last batch to the full shape
- "position": int [b], each sample's place in the whole batch; only where devices share it

Padding is masked with `IGNORE_INDEX`. BatchNorm, loss, gradient and metrics do not see it.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num, PyTree, UInt8

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.devices import rows
from jaxseg.devices.mesh import BY_ROWS, EVERYWHERE, Devices
from jaxseg.learn import losses, optimizers
from jaxseg.learn.augment import Batch
from jaxseg.learn.losses import Loss
from jaxseg.learn.metrics import confusion_matrix, most_probable
from jaxseg.learn.schedules import Schedule
from jaxseg.nn.network import Network

Images = Num[Array | np.ndarray, "b h w c"]
Normalize = Callable[[Images], Float[Array, "b h w c"]]

DROPOUT = 2**31
"""Folded into a step's key for dropout. Augmentation splits that key, which folds small numbers in."""


def normalize(
    image: Num[Array | np.ndarray, "*shape c"],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "*shape c"]:
    """Scales to [0, 1] (see `unit`), then standardizes.

    - `image`: [... c], uint8, uint16, int16 or float; floats are not scaled
    - `mean`, `std`: c numbers each, subtracted and divided by; left out if not given
    - `dtype`: of the result

    Without them equal bit for bit to NumPy's x / 255 and torchvision's `ToTensor`. With them within 1 ulp of
    torchvision's `Normalize`: XLA turns the division into a product.

    >>> normalize(np.array([[0, 255]], np.uint8), mean=(0.5, 0.5), std=(0.5, 0.5)).tolist()
    [[-1.0, 1.0]]
    """
    x = unit(image, dtype)
    mean, std = (None if y is None else jnp.array(y, x.dtype, ndmin=x.ndim) for y in (mean, std))
    x = x if mean is None else x - mean
    return x if std is None else x / std


def train_step(
    model: Network,
    optimizer: nnx.Optimizer,
    batch: Batch,
    *,
    schedule: Schedule,
    loss: Loss = losses.cross_entropy,
    normalize: Normalize = normalize,
    augment: Callable[[jax.Array, Batch], Batch] | None = None,
    accumulate: int = 1,
    seed: int = 0,
    devices: Devices | None = None,
) -> dict[str, jax.Array]:
    """Updates `model` and `optimizer` in place with one batch.

    - `batch`: see the module
    - `schedule`: learning rate by step, reported only; the optimizer has its own
    - `loss`: (logits [b h w k], labels [b h w]) -> float
    - `normalize`: images as files have them -> float32
    - `augment`: (key, batch) -> batch, or None
    - `accumulate`: micro-batches into which the batch is cut; must divide b
    - `seed`: with the step's number it determines augmentation and dropout
    - `devices`: devices that share the batch, which `Devices.put` put there; one if not given

    Returns, on the device: "loss", over the pixels that count; "learning_rate" of this update; "grad_norm", l2 over all
    gradients before clipping; "confusion", int32 [k k], label by row, of the training predictions.
    Raises ValueError if `accumulate` does not divide b.

    >>> from jaxseg.nn.unet import UNet
    >>> net = UNet((4, 8), rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)
    >>> image, mask = np.zeros((2, 4, 4, 3), np.uint8), jnp.zeros((2, 4, 4), jnp.uint8)
    >>> batch = {"image": image, "mask": mask, "valid": np.array([True, True])}
    >>> step = nnx.jit(partial(train_step, schedule=optax.constant_schedule(0.1)))
    >>> seen = step(net, optimizer, batch)
    >>> int(optimizer.step[...]), int(seen["confusion"].sum())
    (1, 32)
    """
    step = optimizer.step[...]

    def ask(model: Network, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, nnx.State]:
        batch = batch if augment is None else augment(key, batch)
        ask = gradients if accumulate == 1 else partial(accumulated_gradients, accumulate)
        return ask(model, batch, jax.random.fold_in(key, DROPOUT), loss, normalize)

    value, confusion, grads = shared(ask, devices)(model, batch, step_key(seed, step))
    optimizer.update(model, grads)
    return {
        "loss": value,
        "learning_rate": jnp.asarray(schedule(step) * optimizers.rate_scale(optimizer), jnp.float32),
        "grad_norm": optax.tree.norm(grads),
        "confusion": confusion,
    }


def loss_fn(
    model: Network,
    batch: Batch,
    loss: Loss = losses.cross_entropy,
    normalize: Normalize = normalize,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Loss of a batch, and its logits.

    - `model`: in training or, through `jaxseg.nn.unet.evaluation`, in evaluation
    - `batch`: see the module
    - `loss`: (logits, labels) -> float
    - `normalize`: images as files have them -> float32
    - `key`: JAX key for dropout

    >>> from jaxseg.nn.unet import UNet
    >>> image, mask = np.zeros((1, 4, 4, 3), np.uint8), jnp.zeros((1, 4, 4), jnp.uint8)
    >>> batch = {"image": image, "mask": mask, "valid": np.array([True])}
    >>> loss, logits = nnx.jit(loss_fn)(UNet((4, 8), rngs=nnx.Rngs(0)), batch)
    >>> loss.shape, logits.shape
    ((), (1, 4, 4, 2))
    """
    logits = model(normalize(batch["image"]), batch["valid"], key)
    return loss(logits, batch["mask"]), logits


def gradients(
    model: Network, batch: Batch, key: jax.Array, loss: Loss, normalize: Normalize
) -> tuple[jax.Array, jax.Array, nnx.State]:
    """Loss, confusion matrix and gradients of a batch; updates the running statistics of `model`.

    Arguments as in `loss_fn`. Where devices share the batch, the loss is that of all, and the others have this
    device's share of a sum: each has the loss, and the sum of their gradients is to be that of one.

    >>> from jaxseg.nn.unet import UNet
    >>> image, mask = np.zeros((1, 4, 4, 3), np.uint8), jnp.zeros((1, 4, 4), jnp.uint8)
    >>> batch = {"image": image, "mask": mask, "valid": np.array([True])}
    >>> net = UNet((4, 8), rngs=nnx.Rngs(0))
    >>> found = lambda net: gradients(net, batch, jax.random.key(0), losses.cross_entropy, normalize)
    >>> _, confusion, grads = nnx.jit(found)(net)
    >>> int(confusion.sum()), grads["head"]["bias"][...].shape
    (16, (2,))
    """

    def share(model: Network) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        value, logits = loss_fn(model, batch, loss, normalize, key)
        return value / rows.count(), (value, logits)

    (_, (value, logits)), grads = nnx.value_and_grad(share, has_aux=True)(model)
    return value, confusion_matrix(most_probable(logits), batch["mask"], logits.shape[-1]), grads


def shared(ask: Callable, devices: Devices | None) -> Callable:
    """Returns `ask`, run on each device with its rows of the batch; its results are summed once, at the end.

    - `ask`: (model, batch, key) -> loss, confusion matrix and gradients; updates the statistics of `model`
    - `devices`: None for a single one
    """
    if devices is None or devices.count == 1:
        return ask

    def asked(model: Network, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, nnx.State]:
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def here(params, rest, batch, key):
            net = nnx.merge(graphdef, params, rest, copy=True)
            value, *sums = ask(net, batch, key)
            return value, *rows.total(tuple(sums)), nnx.state(net, nnx.Not(nnx.Param))

        run = devices.shared(here, (False, False, True, False), EVERYWHERE)
        value, confusion, grads, rest = run(params, rest, batch, key)
        nnx.update(model, rest)
        return value, confusion, grads

    return asked


# Evaluation -----------------------------------------------------------------------------------------------------------


def eval_step(
    model: Network,
    batch: Batch,
    *,
    loss: Loss = losses.cross_entropy,
    normalize: Normalize = normalize,
    devices: Devices | None = None,
) -> dict[str, jax.Array]:
    """Evaluates a batch.

    - `model`: in evaluation, see `jaxseg.nn.unet.evaluation`
    - `batch`: see the module
    - `loss`: (logits [b h w k], labels [b h w]) -> float
    - `normalize`: images as files have them -> float32
    - `devices`: as in `train_step`

    Returns "loss", over the pixels that count; "confusion", int32 [k k], label by row; "predictions", uint8 [b h w].

    >>> from jaxseg.nn.unet import UNet, evaluation
    >>> image, mask = np.zeros((1, 4, 4, 3), np.uint8), jnp.zeros((1, 4, 4), jnp.uint8)
    >>> batch = {"image": image, "mask": mask, "valid": np.array([True])}
    >>> nnx.jit(eval_step)(evaluation(UNet((4, 8), rngs=nnx.Rngs(0))), batch)["predictions"].shape
    (1, 4, 4)
    """

    def here(model: Network, batch: Batch) -> dict[str, jax.Array]:
        value, logits = loss_fn(model, batch, loss, normalize)
        predictions = most_probable(logits)
        confusion = rows.total(confusion_matrix(predictions, batch["mask"], logits.shape[-1]))
        return {"loss": value, "confusion": confusion, "predictions": predictions.astype(jnp.uint8)}

    out = {"loss": EVERYWHERE, "confusion": EVERYWHERE, "predictions": BY_ROWS}
    return _by_rows(here, model, batch, devices, out)


def predict_step(
    model: Network, image: Images, *, normalize: Normalize = normalize, devices: Devices | None = None
) -> UInt8[Array, "b h w"]:
    """Most probable class of every pixel; `model` in evaluation. `devices` as in `train_step`.

    >>> from jaxseg.nn.unet import UNet, evaluation
    >>> net = evaluation(UNet((4, 8), rngs=nnx.Rngs(0)))
    >>> nnx.jit(predict_step)(net, np.zeros((1, 4, 4, 3), np.uint8)).shape
    (1, 4, 4)
    """

    def here(model: Network, image: Images) -> Array:
        return most_probable(model(normalize(image))).astype(jnp.uint8)

    return _by_rows(here, model, image, devices, BY_ROWS)


def probability_step(
    model: Network, image: Images, *, normalize: Normalize = normalize, devices: Devices | None = None
) -> Float[Array, "b h w k"]:
    """Probability (float32) of every class at every pixel; `model` in evaluation. `devices` as in `train_step`.

    >>> from jaxseg.nn.unet import UNet, evaluation
    >>> net = evaluation(UNet((4, 8), rngs=nnx.Rngs(0)))
    >>> nnx.jit(probability_step)(net, np.zeros((1, 4, 4, 3), np.uint8)).shape
    (1, 4, 4, 2)
    """

    def here(model: Network, image: Images) -> Array:
        return softmax(model(normalize(image))).astype(jnp.float32)

    return _by_rows(here, model, image, devices, BY_ROWS)


def _by_rows(function: Callable, model: Network, batch: PyTree, devices: Devices | None, out: PyTree) -> PyTree:
    """`function(model, batch)`, on each of `devices` with its rows; `out` as in `Devices.shared`."""
    if devices is None or devices.count == 1:
        return function(model, batch)
    graphdef, state = nnx.split(model)
    run = devices.shared(lambda state, batch: function(nnx.merge(graphdef, state), batch), (False, True), out)
    return run(state, batch)


FEW = 8
"""Most classes for which `softmax` is faster one class after the other."""


def softmax(logits: Float[Array, "*shape k"]) -> Float[Array, "*shape k"]:
    """`jax.nn.softmax` over the classes. XLA's reductions of a short last axis are slow on a CPU: here they are sums.

    >>> softmax(jnp.array([0.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    if logits.shape[-1] > FEW:
        return jax.nn.softmax(logits)

    def over_classes(combine: Callable, x: Array) -> Array:
        return reduce(combine, [x[..., i] for i in range(x.shape[-1])])[..., None]

    powers = jnp.exp(logits - over_classes(jnp.maximum, logits))
    return powers / over_classes(jnp.add, powers)


# Gradient accumulation ------------------------------------------------------------------------------------------------


def accumulated_gradients(
    parts: int, model: Network, batch: Batch, key: jax.Array, loss: Loss, normalize: Normalize
) -> tuple[jax.Array, jax.Array, nnx.State]:
    """Gradient accumulation over `parts` micro-batches. BatchNorm sees each separately.

    - `parts`: number of micro-batches; must divide b
    - others and result: as in `gradients`

    A micro-batch is weighted with its share of the pixels that are not ignored. Where all have the same number this is
    PyTorch's `(loss / parts).backward()`; elsewhere it is still the mean over the whole batch. Losses that are not a
    plain mean over these pixels (class weights, Dice) are computed within each micro-batch, as in PyTorch. A
    micro-batch without a valid sample changes nothing. Raises ValueError if `parts` does not divide b.

    >>> from jaxseg.nn.unet import UNet
    >>> image, mask = np.zeros((2, 4, 4, 3), np.uint8), jnp.zeros((2, 4, 4), jnp.uint8)
    >>> batch = {"image": image, "mask": mask, "valid": np.array([True, True])}
    >>> net, loss = UNet((4, 8), rngs=nnx.Rngs(0)), losses.cross_entropy
    >>> found = lambda net: accumulated_gradients(2, net, batch, jax.random.key(0), loss, normalize)[:2]
    >>> [x.shape for x in nnx.eval_shape(found, net)]  # of the loss and the confusion matrix
    [(), (2, 2)]
    """
    if len(batch["mask"]) % parts:
        raise ValueError(f"a batch of {len(batch['mask'])} cannot be cut into {parts} equal parts")
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)

    def add(carry, part):
        (rest, total), (batch, share, key) = jax.lax.optimization_barrier(
            (carry, part)
        )  # one micro-batch after the other
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


def shares(masks: UInt8[Array, "parts b h w"]) -> Float[Array, " parts"]:
    """Each micro-batch's share of the pixels that are not ignored; 0 for all if there are none.

    >>> [round(float(share), 2) for share in shares(jnp.array([[[[0, 1]]], [[[0, 255]]]], jnp.uint8))]
    [0.67, 0.33]
    """
    pixels = rows.total((masks != IGNORE_INDEX).sum((1, 2, 3)))
    return pixels / jnp.maximum(pixels.sum(), 1)


# Images and keys ------------------------------------------------------------------------------------------------------

PARTS = {"uint8": (255, float.fromhex("0x1.0101p-8")), "uint16": (65535, 2.0**-16), "int16": (32767, 2.0**-15)}
"""Largest value of each integer type, and the leading bits of its reciprocal."""


def unit(image: Num[Array | np.ndarray, "*shape"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*shape"]:
    """Scales to floats: uint8 / 255, uint16 / 65535, int16 / 32767, floats as they are; exact to the bit in float32.

    XLA turns a division by 255 into a product with 1/255, one ulp off for 126 of the 256 values. Here 1/255 is the sum
    of its leading 17 bits, whose product with a byte is exact (below 2**24), and the rest. Raises ValueError for
    another type.

    >>> unit(np.array([0, 51, 255], np.uint8)).tolist() == [0, np.float32(0.2), 1]
    True
    """
    x = jnp.asarray(image).astype(dtype)
    if jnp.issubdtype(image.dtype, jnp.floating):
        return x
    if image.dtype.name not in PARTS:
        raise ValueError(f"images of type {image.dtype}; expected {', '.join(PARTS)} or floats")
    most, part = PARTS[image.dtype.name]
    return x * part + x * (1 / most - part)


def step_key(seed: int, step: jax.typing.ArrayLike) -> jax.Array:
    """JAX key of a step. Follows from the run's seed and the step's number, so a resumed run draws the same.

    >>> bool(step_key(0, 3) == step_key(0, 3)), bool(step_key(0, 3) == step_key(0, 4))
    (True, False)
    """
    return jax.random.fold_in(jax.random.key(seed), step)
