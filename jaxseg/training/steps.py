"""Steps of an epoch and their results, validation, and the signals that end a run."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from jaxseg.base.errors import NonFiniteLoss
from jaxseg.data.feed.pipeline import Batch, Pipeline, to_device
from jaxseg.learn import metrics


class Signals:
    """Notes Ctrl-C and SIGTERM instead of dying of them; a second one is not caught."""

    received = 0

    def __enter__(self):
        catches = threading.current_thread() is threading.main_thread()  # no other thread may
        numbers = (signal.SIGINT, signal.SIGTERM) if catches else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.received = number
        self.__exit__()


WHAT_TO_TRY = "Try a tenth of --learning-rate, more --warmup-epochs, or --precision f32."


def run_steps(train_step, batches, first: int, log_every: int, signals: Signals) -> Iterator[list[dict]]:
    """Takes a step for each batch and yields what the steps returned, on the host, every `log_every` steps.

    Fetching is the only place where training waits for the device, and `batches` the only one where the device waits
    for training: the seconds of that are in "waited". The first step of all is yielded alone: it compiles. Ends early
    when a signal has come in.
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
        if len(waiting) == look:
            yield fetch()
            look = log_every
        if signals.received:
            break
    if waiting:
        yield fetch()


def timed(batches: Iterable, busy: Callable[[], bool]) -> Iterator[tuple[Batch, float]]:
    """Each batch, and the seconds for which it was waited; none where there was something else to do until it came."""
    began = time.monotonic()
    for batch in batches:
        yield batch, 0.0 if busy() else time.monotonic() - began
        began = time.monotonic()


def is_under_way(results: list[dict]) -> bool:
    """Whether the device is still at the last of the steps that returned these."""
    return bool(results) and not results[-1]["loss"].is_ready()


def check_finite(records: list[dict], epoch: int) -> None:
    """Raises NonFiniteLoss naming the first step whose loss or gradient is not a number."""
    for record in records:
        if not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])):
            raise NonFiniteLoss(
                f"loss {record['loss']}, gradient norm {record['grad_norm']} at step {record['step']} in epoch "
                f"{epoch + 1} (looked at steps {records[0]['step']} to {records[-1]['step']}), "
                f"learning rate {record['learning_rate']:.3g}.{kept(epoch)}\n{WHAT_TO_TRY}"
            )


def kept(epoch: int) -> str:
    """What is there to go back to when `epoch` fails."""
    return f" The checkpoint of epoch {epoch} is kept." if epoch else ""


def evaluate(eval_step, data: Pipeline, epoch: int) -> dict:
    """Scores of a whole dataset from one confusion matrix, and "predicted", the share of pixels given to each class.

    Raises NonFiniteLoss.
    """
    totals, waiting = metrics.Totals(), []
    for batch in to_device(data.epoch()):
        result = eval_step(batch)
        waiting.append({"loss": result["loss"], "confusion": result["confusion"]})
        if len(waiting) > 8:  # so that dispatch does not run away from the device
            totals.add(jax.device_get(waiting.pop(0)))
    for record in jax.device_get(waiting):
        totals.add(record)
    scores = totals.summary()
    if not math.isfinite(scores["loss"]):
        raise NonFiniteLoss(f"validation loss {scores['loss']} after epoch {epoch + 1}.{kept(epoch)}\n{WHAT_TO_TRY}")
    confusion = np.asarray(totals.state["confusion"])
    return scores | {"predicted": (confusion.sum(0) / max(confusion.sum(), 1)).tolist()}
