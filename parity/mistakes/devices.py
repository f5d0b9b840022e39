"""Ways in which devices that share a batch compute something else than one device."""

import types

import jax
import numpy as np
from flax import nnx

from jaxseg.data.feed import pipeline
from jaxseg.devices.mesh import Devices
from jaxseg.learn import augment, losses, step
from jaxseg.nn import layers
from parity.mistakes import mistake, shown


def alone(**others):
    """`jaxseg.devices.rows` where a device sums, or gathers, what it has itself."""

    def wrong(rows):
        names = {"count": rows.count, "total": rows.total, "gathered": rows.gathered, "own": rows.own}
        return types.SimpleNamespace(**names | {name: (lambda x: x) for name in others if others[name]})

    return wrong


def by_device(right):
    """Draws for the samples of a device, so that all devices draw the same."""
    return lambda batch, draw: draw(len(batch["image"]))


def first_rows(right):
    """Gives every device the first rows of the batch."""

    def wrong(self, batch_size, parts=1):
        places = right(self, batch_size, parts)
        return np.tile(places[: len(places) // self.count], self.count)

    return wrong


def consecutive_rows(right):
    """Gives a device consecutive rows of the batch, and not of every micro-batch."""

    def wrong(self, batch_size, parts=1):
        more = len(right(self, batch_size, parts)) - batch_size
        return np.pad(np.arange(batch_size), (0, more), constant_values=-1)

    return wrong


def padding_counts(right):
    """Counts padding as samples."""
    return lambda self, epoch=0, start=0: (b | {"valid": np.ones_like(b["valid"])} for b in right(self, epoch, start))


def own_keys(right):
    """Folds the device's number into the key of dropout."""

    def wrong(self, x, *, rngs=None):
        return nnx.Dropout.__call__(self, x, rngs=rngs)

    return wrong


MISTAKES = [
    shown("lovasz", "BatchNorm: statistics of a device alone", layers, "rows", alone(total=True)),
    shown("cross-entropy", "loss: the mean of the devices' means", losses, "rows", alone(total=True)),
    shown("hard examples", "hard examples: those of a device alone", losses, "rows", alone(gathered=True, own=True)),
    shown("cross-entropy", "gradients: those of a device alone", step, "rows", alone(total=True)),
    shown(
        "accumulation",
        "gradients: summed where their mean is due",
        step,
        "rows",
        lambda rows: types.SimpleNamespace(total=rows.total, count=lambda: 1),
    ),
    shown("accumulation", "micro-batches: a device's share of its own pixels", step, "shares", lambda _: _own_shares),
    shown("accumulation", "micro-batches: of consecutive rows of a device", Devices, "rows", consecutive_rows),
    shown("cross-entropy", "dropout: one key for all devices", layers.Dropout, "__call__", own_keys),
    shown("cross-entropy", "augmentation: one draw for all devices", augment, "_each", by_device),
    shown("cross-entropy", "rows: every device has the first", Devices, "rows", first_rows),
    shown("accumulation", "padding counts as samples", pipeline.Pipeline, "epoch", padding_counts),
    mistake(
        "confusion matrix: of a device alone",
        step,
        "confusion_matrix",
        lambda right: lambda *args: right(*args) // jax.numpy.maximum(step.rows.count(), 1),
    ),
]


def _own_shares(masks):
    pixels = (masks != losses.IGNORE_INDEX).sum((1, 2, 3))
    return pixels / jax.numpy.maximum(pixels.sum(), 1)
