"""Dropout and recomputation (remat), a part of the model question (`parity/checks/model.py`).

One more pass of a network drops half of the deepest features and recomputes every level in the backward pass. The
reference drops the same features, which `jax.random.bernoulli` draws from the key. An XLA option keeps the
recomputation, which XLA would otherwise optimize away on a CPU.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
import torch
from flax import nnx

from jaxseg.learn import compiled, step
from jaxseg.nn.torch_weights import to_torch
from jaxseg.nn.unet import UNet
from parity.judge.compare import Row
from parity.twins import pairs, passes
from parity.twins.quickly import UNOPTIMIZED

RATE = 0.5


def rows(
    row: Callable[..., Row],
    net: UNet,
    reference: torch.nn.Module,
    batch: pairs.Batch,
    losses: tuple[Callable, Callable],
    bottom: tuple[int, ...],
) -> Iterator[Row]:
    """Rows for a network with dropout of RATE and `remat`.

    row: makes a row from (what, found, expected, note).
    net, reference: the network on both sides.
    batch: may be padded.
    losses: jaxseg's and the reference's.
    bottom: shape [b c h w] of the deepest features.
    """
    key, (_, c, h, w), samples = jax.random.key(1), bottom, len(batch["valid"])
    kept = pairs.nchw(jax.random.bernoulli(key, 1 - RATE, (samples, h, w, c)))[batch["valid"]]
    blocks = [module for name, module in reference.named_children() if name.startswith("down")]
    hook = blocks[-1].register_forward_hook(lambda block, x, y: y * torch.from_numpy(kept / (1 - RATE)))
    expected = passes.theirs(reference, batch, "float64", losses[1])
    hook.remove()
    logits, gradients, statistics = trained(net, batch, losses[0], key)
    yield row(
        "dropout, recomputed: logits", logits, expected.logits, f"{1 - kept.mean():.0%} of {kept[0].size} dropped"
    )
    gradients = {name: gradients[name] for name in expected.gradients}
    yield row("dropout, recomputed: gradients", gradients, expected.gradients)
    yield row("dropout, recomputed: running statistics", statistics, expected.statistics, "moved once")


def trained(net: UNet, batch: pairs.Batch, loss: Callable, key: jax.Array) -> tuple[np.ndarray, dict, dict]:
    """Logits [b k h w] of the valid samples, all gradients and the running statistics, by PyTorch's names."""
    graph, parameters, rest = nnx.split(net, nnx.Param, ...)

    @partial(jax.jit, compiler_options=UNOPTIMIZED | compiled.KEEP_BARRIERS)
    def compute(parameters, rest, batch, key):
        net = nnx.merge(graph, parameters, rest, copy=True)
        ask = nnx.value_and_grad(partial(step.loss_fn, loss=loss, key=key), has_aux=True)
        (_, logits), grads = ask(net, batch)
        return logits, grads, nnx.state(net, nnx.BatchStat)

    logits, grads, statistics = compute(parameters, rest, batch, key)
    return pairs.nchw(logits)[batch["valid"]], to_torch(grads), to_torch(statistics)
