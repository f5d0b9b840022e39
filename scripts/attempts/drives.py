"""How the steps of a run follow one another, and what is sent to the device between them."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from jaxseg.learn.step import train_step

SCANNED = 8
Run = Callable[[int], float]
"""Takes so many steps and waits for them; the last loss."""


def queued(step: Callable, batches: list[dict]) -> Run:
    """As the trainer: steps are handed over one after the other, and waited for at the end. Batches are there."""
    return _stepping(step, [jax.device_put(batch) for batch in batches], lambda record: None)


def waiting(step: Callable, batches: list[dict]) -> Run:
    """The loss is read on the host after every step."""
    return _stepping(step, [jax.device_put(batch) for batch in batches], lambda record: float(record["loss"]))


def bytes_sent(step: Callable, batches: list[dict]) -> Run:
    """Every batch from the host, as uint8."""
    return _stepping(step, batches, lambda record: None, send=jax.device_put)


def floats_sent(step: Callable, batches: list[dict]) -> Run:
    """Every batch converted to float32 on the host, and sent so; `floats` gives its shapes."""
    return _stepping(step, batches, lambda record: None, send=lambda batch: jax.device_put(floats(batch)))


def floats(batch: dict) -> dict:
    return batch | {"image": batch["image"].astype(np.float32) / np.float32(255)}


def _stepping(step, batches, read, send=lambda batch: batch) -> Run:
    def run(steps: int) -> float:
        for number in range(steps):
            record = step(send(batches[number % len(batches)]))
            read(record)
        return float(record["loss"])

    return run


def scanned(net: nnx.Module, optimizer: nnx.Optimizer, batches: list[dict], **how) -> tuple[Callable, Run]:
    """`SCANNED` steps in one compiled loop: the compiled function, and what runs at least so many steps with it."""
    graph, state = nnx.split((net, optimizer))

    def one(state, batch):
        net, optimizer = nnx.merge(graph, state)
        record = train_step(net, optimizer, batch, **how)
        return nnx.state((net, optimizer)), record["loss"]

    @functools.partial(jax.jit, donate_argnums=0)
    def many(state, batches):
        return jax.lax.scan(one, state, batches)

    several = [batches[number % len(batches)] for number in range(SCANNED)]
    stacked = jax.device_put({name: np.stack([batch[name] for batch in several]) for name in several[0]})
    compiled = many.lower(state, stacked).compile()

    def run(steps: int) -> float:
        nonlocal state
        for _ in range(max(1, steps // SCANNED)):
            state, losses = compiled(state, stacked)
        return float(losses[-1])

    return compiled, run


DRIVES = {"queued": queued, "waiting": waiting, "bytes sent": bytes_sent, "floats sent": floats_sent}
"""And "scanned", which compiles a program of its own."""
