"""Trains a U-Net on a folder of tiles: `python -m jaxseg.train --data FOLDER`; with no flags, on made-up crop fields.

Ends with a table of scores and leaves a folder `runs/<name>/`: config.json, log.jsonl, curves.png, samples/,
checkpoints/{best,last} and TensorBoard events. `--resume RUN` goes on with a run that was stopped or killed, to the
same bits. Exit status: 0 done, 1 the loss was no longer finite, 2 a mistake that a person can mend, 130 or 143
stopped by a signal (and saved).
"""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from flax import nnx

from jaxseg import config as settings
from jaxseg import losses, metrics, model, optim, schedules, terminal
from jaxseg.checkpoint import Checkpoints, Progress, load_model
from jaxseg.config import Config, UserError
from jaxseg.data import tiles
from jaxseg.data.augment import flips_and_turns
from jaxseg.data.fields import make_fields
from jaxseg.data.pipeline import Pipeline, to_device
from jaxseg.runs import Signals, open_run
from jaxseg.step import compile_eval_step, compile_train_step, step_key
from jaxseg.terminal import Bar, console
from jaxseg.tracking import Tracker

CLASSES = ["background", "field"]
SAMPLES = 6
WHAT_TO_TRY = "Try a tenth of --learning-rate, more --warmup-epochs, or --precision f32."


class NonFiniteLoss(RuntimeError):
    """Training left the numbers; the message says where and what to try."""


class Stopped(Exception):
    """A signal asked the run to end; everything is saved."""

    def __init__(self, signum: int):
        self.exit_code = 128 + signum


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    try:
        train(settings.parse(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteLoss as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:  # before there was anything to save
        return 128 + signal.SIGINT
    return 0


def train(config: Config) -> Path:
    """Runs `config` to its end and returns the run folder. Raises UserError, NonFiniteLoss or Stopped."""
    began, o = time.monotonic(), config.optimization
    terminal.greet()
    training, validation = open_data(config)
    epoch_steps = len(training)
    schedule = schedules.build(o, epoch_steps)
    net = model.build(config.model, in_channels=3, classes=len(CLASSES), seed=config.run.seed)
    optimizer = nnx.Optimizer(net, optim.build(o, schedule), wrt=nnx.Param)
    widths = "-".join(map(str, config.model.widths))
    console.print(f"model U-Net {widths}, {net.parameters:,} parameters, init {config.model.init}")

    run = open_run(config, {"training": training.names, "validation": validation.names})
    checkpoints = Checkpoints(run, config, {"classes": CLASSES, "in_channels": 3})
    progress = checkpoints.restore("last", net, optimizer) if config.run.resume else Progress()
    start = progress.epoch * epoch_steps + progress.batch
    if config.run.resume:
        console.print(
            f"resumed at epoch {progress.epoch + 1}, step {start}, learning rate {float(schedule(start)):.3g}"
        )
    console.print(f"run   {run}")
    # an epoch that was stopped after its last step is not over: it is evaluated, logged and saved again
    logged = min(start, (progress.epoch + 1) * epoch_steps - 1) if config.run.resume else None

    augment = flips_and_turns if o.augment else None
    loss = losses.build(o)
    train_step = compile_train_step(net, optimizer, schedule=schedule, loss=loss, augment=augment, seed=config.run.seed)
    eval_step = compile_eval_step(net, loss=loss)
    with (
        Tracker(run, resume_step=logged) as tracker,
        Bar(o.epochs * epoch_steps, start, o.batch_size) as bar,
        Signals() as signals,
    ):
        if start == 0:
            save_batch_picture(tracker, training, augment, config.run.seed)
        for epoch in range(progress.epoch, o.epochs):
            epoch_began, totals = time.monotonic(), metrics.Totals(progress.totals)
            bar.start_epoch()
            batches = to_device(training.epoch(epoch, start=progress.batch))
            for records in run_steps(
                train_step, batches, epoch * epoch_steps + progress.batch, config.run.log_every, signals
            ):
                check_finite(records, epoch)
                for record in records:
                    totals.add(record)
                tracker.steps(records)
                bar.update(epoch + 1, records)
                progress = Progress(epoch, progress.batch + len(records), totals.state, progress.best)
            if signals.received:
                checkpoints.save("last", epoch * epoch_steps + progress.batch, net, optimizer, progress)
                console.print("stopped and saved; go on with\n  " + terminal.command("jaxseg.train", "--resume", run))
                raise Stopped(signals.received)

            step = (epoch + 1) * epoch_steps
            record = {
                "epoch": epoch,
                "step": step,
                "train": totals.summary(),
                "validation": evaluate(eval_step, validation, epoch),
                "learning_rate": float(schedule(step - 1)),
                "images_per_second": bar.images_per_second,
                "seconds": time.monotonic() - epoch_began,
            }
            best = progress.best is None or record["validation"]["miou"] > progress.best["validation"]["miou"]
            progress = Progress(epoch + 1, best=record if best else progress.best)
            tracker.epoch(record)
            console.print(terminal.epoch_line(record, o.epochs, best))
            for which in ["best"] * best + ["last"]:
                checkpoints.save(which, step, net, optimizer, progress)
        checkpoints.close()
        picture = save_predictions(tracker, run, validation, progress.best)
    report(progress.best, run, validation.pairs[0].image.parent, picture, time.monotonic() - began)
    return run


def run_steps(train_step, batches, first: int, log_every: int, signals: Signals) -> Iterator[list[dict]]:
    """Takes a step for each batch and yields what the steps returned, on the host, every `log_every` steps.

    Fetching is the only place where training waits for the device. The first step of all is yielded alone: it compiles.
    Ends early when a signal has come in.
    """
    waiting: list[dict] = []

    def fetch() -> list[dict]:
        nonlocal first
        records = [record | {"step": first + i} for i, record in enumerate(jax.device_get(waiting))]
        first += len(waiting)
        waiting.clear()
        return records

    look = 1
    for batch in batches:
        waiting.append(train_step(batch))
        if len(waiting) == look:
            yield fetch()
            look = log_every
        if signals.received:
            break
    if waiting:
        yield fetch()


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
    """Scores of a whole dataset from one confusion matrix. Raises NonFiniteLoss."""
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
    return scores


def open_data(config: Config) -> tuple[Pipeline, Pipeline]:
    """Training and validation batches, every file decoded once. Raises DataError listing all that is wrong with the
    files.
    """
    data, o = config.data, config.optimization
    if data.data is None and data.images is None:
        data = dataclasses.replace(data, data=Path("data") / "made-up-fields")
        make_fields(data.data, train=48, val=12, size=112)
        console.print(f"data  none given, so made-up crop fields in {data.data}")
    splits = tiles.find_splits(data, config.run.seed)
    surveys = tiles.survey_splits(splits, data.workers)
    for name, found in zip(("training", "validation"), surveys):
        shares = ", ".join(f"{c} {n / sum(found.class_pixels):.1%}" for c, n in zip(CLASSES, found.class_pixels))
        console.print(f"data  {found.pairs} {name} tiles of {found.width}x{found.height}; {shares}")
        if found.lost_pixels:
            lost = f"      {found.lost_pixels:,} mask pixels are neither 0 nor 255 and count as {CLASSES[0]}"
            console.print(lost, style="yellow")
    check_sizes(config, surveys)
    need = sum(found.decoded_bytes for found in surveys)
    cache = need <= data.cache_mb * 2**20
    if data.cache_mb and not cache:
        console.print(
            f"data  {need / 2**20:.0f} MiB decoded do not fit in --cache-mb {data.cache_mb}: read from disk each epoch"
        )
    how = {"batch_size": o.batch_size, "workers": data.workers, "cache": cache}
    return Pipeline(splits[0], shuffle=True, seed=config.run.seed, **how), Pipeline(splits[1], **how)


def check_sizes(config: Config, surveys: list[tiles.Survey]) -> None:
    """Raises UserError when tiles are too small for the network, or for BatchNorm at its deepest level in training."""
    levels, batch, training = len(config.model.widths), config.optimization.batch_size, surveys[0]
    least = 2 ** (levels - 1)
    for found in surveys:
        if min(found.height, found.width) < least:
            size = f"{found.width}x{found.height}"
            raise UserError(f"tiles of {size} are too small: {levels} --widths need {least} pixels a side")
    if (training.height // least) * (training.width // least) == 1 and 1 in (batch, training.pairs % batch):
        raise UserError(
            f"a batch of 1 tile leaves BatchNorm one value per channel at the deepest level ({training.width}x"
            f"{training.height} tiles, {levels} --widths, {training.pairs} tiles in batches of {batch}). "
            "Use fewer --widths or another --batch-size."
        )


def save_batch_picture(tracker: Tracker, training: Pipeline, augment, seed: int) -> None:
    """The first batch as the network will see it: the article's look at its data."""
    batch = next(iter(training.epoch()))
    if augment is not None:
        batch = jax.device_get(augment(step_key(seed, 0), batch))
    n = min(int(batch["valid"].sum()), SAMPLES)
    tracker.pictures("batch", 0, batch["image"][:n], batch["mask"][:n], class_names=CLASSES)


def save_predictions(tracker: Tracker, run: Path, validation: Pipeline, best: dict) -> Path:
    """Pictures of validation tiles, spread over the set, with what the best checkpoint makes of them."""
    net, _ = load_model(run)
    chosen = validation.pairs[:: max(1, len(validation.pairs) // SAMPLES)][:SAMPLES]
    (batch,) = Pipeline(chosen, batch_size=len(chosen)).epoch()
    result = jax.device_get(compile_eval_step(net)(batch))
    captions = [pair.image.stem for pair in chosen]
    tracker.pictures(
        "predictions", best["step"], batch["image"], batch["mask"], result["predictions"], CLASSES, captions
    )
    return run / "samples" / "predictions.png"


def report(best: dict, run: Path, images: Path, picture: Path, seconds: float) -> None:
    """The table at the end, where everything is, and what to do next with a folder of `images`."""
    scores = best["validation"]
    console.print()
    console.print(terminal.result_table(scores, CLASSES, f"validation, best epoch ({best['epoch'] + 1})"))
    console.print(f"mIoU {scores['miou']:.4f}   pixel accuracy {scores['accuracy']:.4f}")
    console.print(f"{terminal.speed(best['images_per_second'])} in training, {terminal.clock(seconds)} in all")
    console.print(f"\npictures   {picture}\ncurves     {run / 'curves.png'}\nbest model {run / 'checkpoints' / 'best'}")
    console.print("\nnext\n  " + terminal.command("jaxseg.predict", run, images, "-o", run / "predictions"))


if __name__ == "__main__":
    sys.exit(main())
