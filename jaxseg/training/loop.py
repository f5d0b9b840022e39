"""Trains: data, steps, log, evaluation, checkpoints."""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx

from jaxseg.base import config as settings
from jaxseg.base import extra, terminal
from jaxseg.base.config import Config, Optimization
from jaxseg.base.errors import OutOfMemory, Stopped, UserError
from jaxseg.base.rules import check
from jaxseg.base.terminal import console
from jaxseg.data.feed.pipeline import to_device
from jaxseg.devices.mesh import Devices
from jaxseg.devices.processes import Absent, alike, devices_of, is_first, largest, once, tell_devices
from jaxseg.devices.watch import together
from jaxseg.learn import class_weights, metrics, optimizers, schedules
from jaxseg.learn.plan import make_plan
from jaxseg.runs import readme
from jaxseg.runs.checkpoint import Checkpoints, Progress, newest_step
from jaxseg.runs.folder import check_target, open_run
from jaxseg.runs.pretrained import settled
from jaxseg.runs.record import of_split
from jaxseg.runs.tracker import Tracker
from jaxseg.training import advice, report
from jaxseg.training.assembly import assemble
from jaxseg.training.dataset import Dataset, open_data
from jaxseg.training.progress import Bar
from jaxseg.training.steps import Signals, check_finite, evaluate, run_steps


def fit(config: Config) -> Path | None:
    """Trains a network, as `python -m jaxseg.train` does, and returns the folder of the run.

    - `config`: all settings; with `config.run.resume`, those of the resumed run

    Returns None after a dry run (`config.run.dry_run`). Raises:

    - UserError, a ValueError: invalid settings or files, and a disk that is full; the message names all of them
    - NonFiniteLoss, OutOfMemory: the loss became NaN or infinite, or memory was not enough; the message says what to
      try
    - Stopped: a signal ended the run after everything was saved
    """
    check(config)
    terminal.greet()
    with together():
        return _fit_together(config)


def _fit_together(config: Config) -> Path | None:
    """Does `fit` in each of several processes. What only the first one does may fail there, for all."""

    def prepare() -> tuple[Config, Dataset]:
        extra.require_all({name: f"--log {name}" for name in config.run.log})
        check_target(config)
        chosen = settled(config)
        if chosen.optimization.class_weights:
            class_weights.check(chosen.optimization.class_weights)
        return chosen, open_data(chosen)

    devices = devices_of(config.machine.devices)
    tell_devices(devices, indent="      ")
    config, data = once(prepare)
    try:
        with contextlib.ExitStack() as held:
            return _fit(config, data, devices, held)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if (message := advice.out_of_memory(error, config, data.tile)) is None:
            raise
        raise OutOfMemory(message) from error


def _fit(config: Config, data: Dataset, devices: Devices, held: contextlib.ExitStack) -> Path | None:
    """Trains. `held` keeps the run's folder locked until it is closed."""
    began, o = time.monotonic(), config.optimization
    before = config if config.run.resume is None else settings.load(config.run.resume)
    fresh = config.run.resume is None or newest_step(config.run.resume) is None
    a = assemble(config, data, load=before.run if fresh else None, devices=devices)
    plan, net, optimizer = a.plan, a.net, a.optimizer
    batch = next(a.training.epoch())
    report.tell(config, data, net, plan, batch)
    if config.run.dry_run:
        console.print("dry run: no step was taken, nothing was written")
        return None

    split = of_split(data.found.split, data.found.facts.all)
    run = once(lambda: held.enter_context(open_run(config, split, data.files)))
    checkpoints = Checkpoints(run, config, data.description) if is_first() else Absent()
    progress = once(lambda: checkpoints.resume(net, optimizer) if config.run.resume else None) or Progress()
    alike(devices, net, optimizer)
    start = progress.epoch * plan.epoch_steps + progress.batch
    if config.run.resume:
        report.tell_resumed(plan, make_plan(before.optimization, plan.epoch_steps), progress, start)
        if progress.devices not in ("", str(devices)):
            console.print(f"      on {devices}, before that on {progress.devices}; results differ by rounding alone")
    progress = dataclasses.replace(progress, devices=str(devices))
    console.print(f"run   {run}")

    # an epoch stopped after its last step is evaluated, logged and saved again
    tracked = {"resume_step": start, "resume_epoch": progress.epoch} if config.run.resume else {}
    with (
        advice.resumable(run),
        (
            Tracker(
                run,
                **tracked,
                class_names=data.classes,
                services=config.run.log,
                settings=json.loads(settings.dumps(config)),
            )
            if is_first()
            else Absent()
        ) as tracker,
        Bar(plan.steps, start, o.batch_size, data.samples) if is_first() else Absent() as bar,
        Signals() as signals,
    ):
        if (best := once(lambda: last_as_best(progress, tracker.epochs))) is not None:
            progress = dataclasses.replace(progress, best=best)
            checkpoints.save("best", start, net, optimizer, progress)
        for epoch in range(progress.epoch, plan.epochs):
            if is_exhausted(o, progress):
                console.print(f"early  no better mIoU for {o.early_stopping} epochs")
                break
            epoch_began, totals = time.monotonic(), metrics.Totals(progress.totals)
            bar.start_epoch()
            first, end = epoch * plan.epoch_steps + progress.batch, plan.end(epoch)
            batches = itertools.islice(a.training.epoch(epoch, start=progress.batch), end - first)
            batches = to_device(batches, devices=a.training.devices)
            for records in run_steps(a.step(epoch), batches, first, config.run.log_every, signals):
                check_finite(records, epoch)
                for record in records:
                    totals.add(record)
                tracker.steps(records)
                bar.update(epoch + 1, records)
                if records[0]["step"] == 0 and is_first():  # after the first step, which should not wait for it
                    report.save_batch_picture(tracker, data, batch, a.augment, config.run.seed)
                progress = dataclasses.replace(progress, batch=progress.batch + len(records), totals=totals.state)
            if received := largest(signals.received):
                checkpoints.save("last", epoch * plan.epoch_steps + progress.batch, net, optimizer, progress)
                with contextlib.suppress(OSError):  # the terminal may have gone
                    console.print(
                        "stopped and saved; go on with\n  " + terminal.command("jaxseg.train", "--resume", run)
                    )
                raise Stopped(received)

            record = {
                "epoch": epoch,
                "step": end,
                "train": totals.summary(),
                "validation": evaluate(a.eval_step, a.validation, epoch),
                "learning_rate": float(plan.schedule(end - 1) * optimizers.rate_scale(optimizer)),
                "images_per_second": bar.images_per_second,
                "waited": bar.waited,
                "seconds": time.monotonic() - epoch_began,
            }
            best = progress.best is None or is_better(record, progress.best)
            plateau = watch_plateau(o, progress.plateau, record, optimizer)
            progress = dataclasses.replace(progress, best=record if best else progress.best, plateau=plateau)
            if end == (epoch + 1) * plan.epoch_steps:  # else --steps ends within the epoch; resuming continues it
                progress = dataclasses.replace(progress, epoch=epoch + 1, batch=0, totals=None)
            tracker.epoch(record)
            console.print(terminal.epoch_line(record, plan.epochs, best))
            for warning in (
                advice.one_class_only(tracker.epochs, data.classes, data.class_pixels, config.optimization),
                advice.waits_for_data(tracker.epochs, data.cache, config.data.workers),
            ):
                if warning is not None:
                    console.print(warning, style="yellow")
            for which in ["best"] * best + ["last"]:
                checkpoints.save(which, end, net, optimizer, progress)
        if progress.best is None:
            raise UserError(f"{run}: has no best epoch, and its checkpoint is lost; train on with more --epochs")
        if not is_first():
            return run
        picture = report.save_predictions(tracker, run, data, progress.best)
        tracker.scores(progress.best)
    images = a.validation.pairs[0].image.parent
    readme.write(run, config, data.description, progress.best, images)
    report.report(progress.best, run, data.classes, images, picture, time.monotonic() - began)
    return run


def last_as_best(progress: Progress, epochs: Sequence[dict]) -> dict | None:
    """Returns the record of the last epoch when the best weights were lost and the last ones end it; else None.

    - `progress`: position of the resumed run; without `best` after the first epoch only if they were lost
    - `epochs`: lines of log.jsonl up to there
    """
    if progress.best is not None or not progress.epoch or progress.batch or not epochs:
        return None
    return epochs[-1] if epochs[-1]["validation"]["miou"] is not None else None


def is_better(record: dict, best: dict) -> bool:
    """True if an epoch's validation mIoU is above the best so far; NaN never is."""
    return record["validation"]["miou"] > best["validation"]["miou"]


def is_exhausted(o: Optimization, progress: Progress) -> bool:
    """True if --early-stopping ends the run before the next epoch."""
    if o.early_stopping is None or progress.best is None or progress.batch:
        return False
    return progress.epoch - 1 - progress.best["epoch"] >= o.early_stopping


def watch_plateau(o: Optimization, state: dict | None, record: dict, optimizer: nnx.Optimizer) -> dict | None:
    """Updates --schedule plateau with an epoch's mIoU, and scales the learning rate.

    - `o`: settings
    - `state`: state after the epoch before, or None
    - `record`: line of log.jsonl for the epoch
    - `optimizer`: its rate's factor is set

    Returns the new state; None with another schedule.
    """
    if o.schedule != "plateau":
        return None
    plateau = schedules.Plateau(o.learning_rate, gamma=o.gamma, patience=o.patience, final_lr=o.final_lr, state=state)
    optimizers.set_rate_scale(optimizer, plateau.update(record["validation"]["miou"]))
    return plateau.state
