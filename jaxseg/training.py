"""A run from its settings to its folder: data, step, log, evaluate, save."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from jaxseg import class_weights, losses, metrics, model, optim, reports, run_readme, schedules, terminal, troubles
from jaxseg import config as settings
from jaxseg.checkpoint import Checkpoints, Progress, load_weights
from jaxseg.config import Config, Optimization
from jaxseg.data import augment
from jaxseg.data.pipeline import Batch, Pipeline, to_device
from jaxseg.plan import make_plan
from jaxseg.prepare import Dataset, open_data
from jaxseg.runs import Signals, open_run
from jaxseg.step import compile_eval_step, compile_train_step, normalize, unit
from jaxseg.terminal import Bar, console
from jaxseg.tracking import Tracker
from jaxseg.troubles import NonFiniteLoss, OutOfMemory, Stopped

WHAT_TO_TRY = "Try a tenth of --learning-rate, more --warmup-epochs, or --precision f32."


def train(config: Config) -> Path | None:
    """Runs `config` to its end and returns the run folder, None after a dry run.

    Raises UserError, NonFiniteLoss, OutOfMemory or Stopped.
    """
    terminal.greet()
    if config.optimization.class_weights:
        class_weights.check(config.optimization.class_weights)
    data = open_data(config)
    try:
        return fit(config, data)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if (message := troubles.out_of_memory(error, config, data.tile)) is None:
            raise
        raise OutOfMemory(message) from error


def fit(config: Config, data: Dataset) -> Path | None:
    """The run on its data: step, log, evaluate, save."""
    began, o = time.monotonic(), config.optimization
    training, validation = data.pipelines(config.run.seed, config.data.workers)
    plan = make_plan(o, len(training))
    net = model.build(config.model, in_channels=data.reading.channels, classes=len(data.classes), seed=config.run.seed)
    if config.run.load is not None:
        load_weights(net, config.run.load)
    optimizer = nnx.Optimizer(net, optim.build(o, plan.schedule), wrt=nnx.Param)
    parts = step_parts(config, data)
    batch = next(training.epoch())
    reports.tell(config, data, net, plan, batch)
    if config.run.dry_run:
        console.print("dry run: no step was taken, nothing was written")
        return None

    before = config if config.run.resume is None else settings.load(config.run.resume)
    run = open_run(config, data.split_names)
    checkpoints = Checkpoints(run, config, data.description)
    progress = checkpoints.restore("last", net, optimizer) if config.run.resume else Progress()
    start = progress.epoch * plan.epoch_steps + progress.batch
    if config.run.resume:
        reports.tell_resumed(plan, make_plan(before.optimization, plan.epoch_steps), progress, start)
    console.print(f"run   {run}")
    # an epoch that was stopped after its last step is not over: it is evaluated, logged and saved again
    logged = start - bool(progress.batch) if config.run.resume else None

    train_step = compile_train_step(net, optimizer, schedule=plan.schedule, seed=config.run.seed, **parts)
    eval_step = compile_eval_step(optim.averaged(net, optimizer), loss=parts["loss"], normalize=parts["normalize"])
    with (
        Tracker(run, resume_step=logged, class_names=data.classes) as tracker,
        Bar(plan.steps, start, o.batch_size) as bar,
        Signals() as signals,
    ):
        for epoch in range(progress.epoch, plan.epochs):
            if is_exhausted(o, progress):
                console.print(f"early  no better mIoU for {o.early_stopping} epochs")
                break
            epoch_began, totals = time.monotonic(), metrics.Totals(progress.totals)
            bar.start_epoch()
            first, end = epoch * plan.epoch_steps + progress.batch, plan.end(epoch)
            batches = to_device(itertools.islice(training.epoch(epoch, start=progress.batch), end - first))
            for records in run_steps(train_step, batches, first, config.run.log_every, signals):
                check_finite(records, epoch)
                for record in records:
                    totals.add(record)
                tracker.steps(records)
                bar.update(epoch + 1, records)
                if records[0]["step"] == 0:  # now, and not before: the first step does not wait for it
                    reports.save_batch_picture(tracker, data, batch, parts["augment"], config.run.seed)
                progress = dataclasses.replace(progress, batch=progress.batch + len(records), totals=totals.state)
            if signals.received:
                checkpoints.save("last", epoch * plan.epoch_steps + progress.batch, net, optimizer, progress)
                console.print("stopped and saved; go on with\n  " + terminal.command("jaxseg.train", "--resume", run))
                raise Stopped(signals.received)

            record = {
                "epoch": epoch,
                "step": end,
                "train": totals.summary(),
                "validation": evaluate(eval_step, validation, epoch),
                "learning_rate": float(plan.schedule(end - 1) * optim.rate_scale(optimizer)),
                "images_per_second": bar.images_per_second,
                "waited": bar.waited,
                "seconds": time.monotonic() - epoch_began,
            }
            best = progress.best is None or is_better(record, progress.best)
            plateau = watch_plateau(o, progress.plateau, record, optimizer)
            progress = dataclasses.replace(progress, best=record if best else progress.best, plateau=plateau)
            if end == (epoch + 1) * plan.epoch_steps:  # else --steps ends within it, and more of them go on there
                progress = dataclasses.replace(progress, epoch=epoch + 1, batch=0, totals=None)
            tracker.epoch(record)
            console.print(terminal.epoch_line(record, plan.epochs, best))
            for warning in (
                troubles.one_class_only(tracker.epochs, data.classes, data.class_pixels),
                troubles.waits_for_data(tracker.epochs, data.cache, config.data.workers),
            ):
                if warning is not None:
                    console.print(warning, style="yellow")
            for which in ["best"] * best + ["last"]:
                checkpoints.save(which, end, net, optimizer, progress)
        checkpoints.close()
        picture = reports.save_predictions(tracker, run, data, progress.best)
    images = validation.pairs[0].image.parent
    run_readme.write(run, config, data.description, progress.best, images)
    reports.report(progress.best, run, data.classes, images, picture, time.monotonic() - began)
    return run


def step_parts(config: Config, data: Dataset) -> dict:
    """What the step is made of beside model, optimizer and schedule; says which class weights it found."""
    o, reading = config.optimization, data.reading
    weights = (
        class_weights.weights(o.class_weights, data.class_pixels, data.found.training.image_pixels)
        if o.class_weights
        else None
    )
    if weights is not None:
        shown = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(data.classes, weights, strict=True))
        console.print(f"loss  class weights: {shown}")
    normalized = partial(normalize, mean=reading.mean or None, std=reading.std or None)
    return {
        "loss": losses.build(o, weights),
        "normalize": normalized,
        "augment": None if config.run.overfit else augment.build(config.augmentation, unit),
        "accumulate": o.accumulate,
    }


def is_better(record: dict, best: dict) -> bool:
    """Whether an epoch's validation mIoU is above the best so far; one without a score is not."""
    return record["validation"]["miou"] > best["validation"]["miou"]


def is_exhausted(o: Optimization, progress: Progress) -> bool:
    """Whether --early-stopping ends the run here."""
    if o.early_stopping is None or progress.best is None or progress.batch:
        return False
    return progress.epoch - 1 - progress.best["epoch"] >= o.early_stopping


def watch_plateau(o: Optimization, state: dict | None, record: dict, optimizer: nnx.Optimizer) -> dict | None:
    """Lets --schedule plateau see an epoch's mIoU, sets the learning rate's factor, and returns its state to keep."""
    if o.schedule != "plateau":
        return None
    plateau = schedules.Plateau(o.learning_rate, gamma=o.gamma, patience=o.patience, final_lr=o.final_lr, state=state)
    optim.set_rate_scale(optimizer, plateau.update(record["validation"]["miou"]))
    return plateau.state


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
