"""The part of the model question about dropout and recomputation; see `parity/checks/model.py` for the command and
the gate.

One more pass of a network, with half of the features at the bottom dropped and every level computed again on the way
back. The reference drops the same features, those that `jax.random.bernoulli` draws from the key; and XLA on a CPU,
which would see through the recomputation and leave it out, is told not to.
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

RATE = 0.5


def rows(
    row: Callable[..., Row],
    net: UNet,
    reference: torch.nn.Module,
    batch: pairs.Batch,
    losses: tuple[Callable, Callable],
    bottom: tuple[int, ...],
) -> Iterator[Row]:
    """`row(what, found, expected, note)` of a network with RATE and `remat`.

    losses: jaxseg's and the reference's; bottom: shape [b c h w] of the deepest features.
    """
    key, (_, c, h, w), samples = jax.random.key(1), bottom, len(batch["valid"])
    kept = pairs.nchw(jax.random.bernoulli(key, 1 - RATE, (samples, h, w, c)))[batch["valid"]]
    blocks = [module for name, module in reference.named_children() if name.startswith("down")]
    hook = blocks[-1].register_forward_hook(lambda block, x, y: y * torch.from_numpy(kept / (1 - RATE)))
    expected = passes.theirs(reference, batch, "float64", losses[1])
    hook.remove()
    logits, gradients, statistics = trained(net, batch, losses[0], key)
    yield row("dropout, recomputed: logits", logits, expected.logits, f"{1 - kept.mean():.0%} of {kept[0].size} fall")
    gradients = {name: gradients[name] for name in expected.gradients}
    yield row("dropout, recomputed: gradients", gradients, expected.gradients)
    yield row("dropout, recomputed: running statistics", statistics, expected.statistics, "moved once")


def trained(net: UNet, batch: pairs.Batch, loss: Callable, key: jax.Array) -> tuple[np.ndarray, dict, dict]:
    """Logits [b k h w] of the valid samples, and by PyTorch's names all gradients and the running statistics."""
    graph, parameters, rest = nnx.split(net, nnx.Param, ...)

    @partial(jax.jit, compiler_options=passes.UNOPTIMIZED | compiled.KEEP_BARRIERS)
    def compute(parameters, rest, batch, key):
        net = nnx.merge(graph, parameters, rest, copy=True)
        ask = nnx.value_and_grad(partial(step.loss_fn, loss=loss, key=key), has_aux=True)
        (_, logits), grads = ask(net, batch)
        return logits, grads, nnx.state(net, nnx.BatchStat)

    logits, grads, statistics = compute(parameters, rest, batch, key)
    return pairs.nchw(logits)[batch["valid"]], to_torch(grads), to_torch(statistics)
