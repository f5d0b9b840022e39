"""The training step: plain functions, and at the foot the lines that compile them.

A batch is {"image": uint8 [b h w c], "mask": uint8 [b h w], "valid": bool [b]}. Samples that are not `valid` pad a
short last batch to the full shape; their mask is `IGNORE_INDEX`, and neither BatchNorm, loss, gradient nor metric
sees them.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxseg import losses
from jaxseg.data.augment import Batch
from jaxseg.losses import Loss
from jaxseg.metrics import confusion_matrix
from jaxseg.model import UNet
from jaxseg.schedules import Schedule


def normalize(image: UInt8[Array | np.ndarray, "*shape"]) -> Float[Array, "*shape"]:
    """uint8 -> float32 in [0, 1], equal bit for bit to image / 255 in NumPy and in torchvision's `ToTensor`.

    XLA turns a division by 255 into a product with 1/255, which is one ulp off for 126 of the 256 values. Here 1/255
    is the sum of a part of 17 bits, whose product with a byte is exact (below 2**24), and the rest.
    """
    x = image.astype(jnp.float32)
    return x * jnp.float32(HIGH) + x * jnp.float32(LOW)


HIGH = float.fromhex("0x1.0101p-8")  # 1/255 to 17 significant bits
LOW = 1 / 255 - HIGH


def step_key(seed: int, step: jax.typing.ArrayLike) -> jax.Array:
    """The randomness of a step follows from the run's seed and its number, so a resumed run draws the same."""
    return jax.random.fold_in(jax.random.key(seed), step)


def loss_fn(model: UNet, batch: Batch, loss: Loss = losses.cross_entropy) -> tuple[jax.Array, jax.Array]:
    """The loss of a batch, and its logits."""
    logits = model(normalize(batch["image"]), batch["valid"])
    return loss(logits, batch["mask"]), logits


def train_step(
    model: UNet,
    optimizer: nnx.Optimizer,
    batch: Batch,
    *,
    schedule: Schedule,
    loss: Loss = losses.cross_entropy,
    augment: Callable[[jax.Array, Batch], Batch] | None = None,
    seed: int = 0,
) -> dict[str, jax.Array]:
    """One update of `model` and `optimizer`, in place; returns what the step saw, on the device.

    loss: float, of the pixels that count; learning_rate: what this update used; grad_norm: l2 of all gradients
    together, before any clipping; confusion: int32 [k k] of the predictions made on the way. Augmentation follows from
    `seed` and the step alone.
    """
    step = optimizer.step[...]
    if augment is not None:
        batch = augment(step_key(seed, step), batch)
    (value, logits), grads = nnx.value_and_grad(partial(loss_fn, loss=loss), has_aux=True)(model, batch)
    optimizer.update(model, grads)
    return {
        "loss": value,
        "learning_rate": jnp.asarray(schedule(step), jnp.float32),
        "grad_norm": optax.tree.norm(grads),
        "confusion": confusion_matrix(batch["mask"], logits.argmax(-1), logits.shape[-1]),
    }


def eval_step(model: UNet, batch: Batch, *, loss: Loss = losses.cross_entropy) -> dict[str, jax.Array]:
    """Loss (of the pixels that count), confusion matrix and predictions of a batch; `model` with running statistics."""
    value, logits = loss_fn(model, batch, loss)
    predictions = logits.argmax(-1)
    confusion = confusion_matrix(batch["mask"], predictions, logits.shape[-1])
    return {"loss": value, "confusion": confusion, "predictions": predictions.astype(jnp.uint8)}


def predict_step(model: UNet, image: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w"]:
    """The most probable class of every pixel; `model` with running statistics."""
    return model(normalize(image)).argmax(-1).astype(jnp.uint8)


def compile_train_step(model: UNet, optimizer: nnx.Optimizer, **how) -> Callable[[Batch], dict[str, jax.Array]]:
    """`train_step` compiled for this model and optimizer, whose buffers it reuses; `how` are its keyword arguments."""
    return nnx.jit_partial(partial(train_step, **how), model, optimizer, graph=False, donate_argnums=0)


def compile_predict_step(model: UNet) -> Callable[[UInt8[Array, "b h w c"]], UInt8[Array, "b h w"]]:
    """`predict_step` compiled, once for every size of image; `model` as `checkpoint.load_model` gives it."""
    return partial(nnx.jit(predict_step, graph=False), model)


def compile_eval_step(model: UNet, *, loss: Loss = losses.cross_entropy) -> Callable[[Batch], dict[str, jax.Array]]:
    """`eval_step` compiled, on a view of `model` that shares its weights and uses its running statistics."""
    view = nnx.view(model, use_running_average=True)
    return partial(nnx.jit(partial(eval_step, loss=loss), graph=False), view)
