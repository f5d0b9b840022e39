"""Runs the steps of an epoch and the validation, and handles the signals that end a run."""

import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from jaxseg.base.errors import NonFiniteLoss
from jaxseg.data.feed.pipeline import Batch, Pipeline, to_device
from jaxseg.devices.processes import largest
from jaxseg.learn import metrics

WHAT_TO_TRY = "Try a tenth of --learning-rate, more --warmup-epochs, or --precision f32."


class Signals:
    """Notes the first Ctrl-C, SIGTERM or SIGHUP in `received` inside a `with` statement; a second one is not caught.

    A SIGHUP that is ignored, as under nohup, stays so. Outside the main thread signals cannot be caught, so nothing is
    noted.
    """

    received = 0

    def __enter__(self):
        catches = threading.current_thread() is threading.main_thread()  # Python allows no other thread
        numbers = [signal.SIGINT, signal.SIGTERM] if catches else []
        if catches and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)  # the terminal has gone; Windows has none
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.received = number
        self.__exit__()


def run_steps(train_step, batches, first: int, log_every: int, signals: Signals) -> Iterator[list[dict]]:
    """Takes a step per batch and yields lists of results on the host, every `log_every` steps.

    - `train_step`: function from a batch to a dict with "loss"
    - `batches`: iterable of batches on the device
    - `first`: number of the first step, from 0
    - `log_every`: steps per list; the first step comes alone, as it may compile
    - `signals`: ends the steps early when one was received

    Each result also has "step", its number, and "waited", the seconds for which the device waited for the batch.
    Training waits for the device only when it fetches a list.
    """
    waiting: list[dict] = []

    def fetch() -> list[dict]:
        nonlocal first
        records = [record | {"step": first + i} for i, record in enumerate(jax.device_get(waiting))]
        first += len(waiting)
        waiting.clear()
        return records

    look = 1
    for batch, waited in timed(batches, busy=lambda: is_under_way(waiting)):
        waiting.append(train_step(batch) | {"waited": waited})
        looked = len(waiting) == look
        if looked:
            yield fetch()
            look = log_every
        if (looked or jax.process_count() == 1) and largest(signals.received):  # several processes stop together
            break
    if waiting:
        yield fetch()


def timed(batches: Iterable, busy: Callable[[], bool]) -> Iterator[tuple[Batch, float]]:
    """Yields each batch and the seconds waited for it; 0 if the device was `busy` until it came."""
    began = time.monotonic()
    for batch in batches:
        yield batch, 0.0 if busy() else time.monotonic() - began
        began = time.monotonic()


def is_under_way(results: list[dict]) -> bool:
    """True if the device is still computing the last of these results."""
    return bool(results) and not results[-1]["loss"].is_ready()


def check_finite(records: list[dict], epoch: int) -> None:
    """Raises NonFiniteLoss naming the first step whose loss or gradient norm is NaN or infinite."""
    for record in records:
        if not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])):
            raise NonFiniteLoss(
                f"loss {record['loss']}, gradient norm {record['grad_norm']} at step {record['step']} in epoch "
                f"{epoch + 1} (looked at steps {records[0]['step']} to {records[-1]['step']}), "
                f"learning rate {record['learning_rate']:.3g}.{kept(epoch)}\n{WHAT_TO_TRY}"
            )


def kept(epoch: int) -> str:
    """Returns a sentence about the last checkpoint when `epoch` fails; empty in the first epoch."""
    return f" The checkpoint of epoch {epoch} is kept." if epoch else ""


def evaluate(eval_step, data: Pipeline, epoch: int, most: int | None = None) -> dict:
    """Returns the scores of a dataset (see `metrics.summary`), its loss, and "predicted".

    - `eval_step`: function from a batch to "loss" and "confusion"
    - `data`: pipeline of the dataset
    - `epoch`: number of the epoch, from 0, for the message
    - `most`: number of batches, from the first on; all if not given

    "predicted" is the share of pixels predicted as each class. Raises NonFiniteLoss.
    """
    totals, waiting = metrics.Totals(), []
    for batch in to_device(itertools.islice(data.epoch(), most), devices=data.devices):
        result = eval_step(batch)
        waiting.append({"loss": result["loss"], "confusion": result["confusion"]})
        if len(waiting) > 8:  # bounds the number of batches in flight
            totals.add(jax.device_get(waiting.pop(0)))
    for record in jax.device_get(waiting):
        totals.add(record)
    scores = totals.summary()
    if not math.isfinite(scores["loss"]):
        raise NonFiniteLoss(f"validation loss {scores['loss']} after epoch {epoch + 1}.{kept(epoch)}\n{WHAT_TO_TRY}")
    confusion = np.asarray(totals.state["confusion"])
    return scores | {"predicted": (confusion.sum(0) / max(confusion.sum(), 1)).tolist()}
