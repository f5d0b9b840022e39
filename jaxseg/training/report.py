"""Prints and draws what a run does: plan, input, resumption, samples, final scores."""

from pathlib import Path

import jax
import numpy as np

from jaxseg.base import terminal
from jaxseg.base.config import Config
from jaxseg.base.terminal import console
from jaxseg.data.read.samples import read_sample
from jaxseg.inference.predictor import Predictor, normalization
from jaxseg.learn.augment import Augment, Batch
from jaxseg.learn.plan import Plan
from jaxseg.learn.step import step_key
from jaxseg.nn.network import Network
from jaxseg.runs.checkpoint import Progress, load_model
from jaxseg.runs.tracker import Tracker
from jaxseg.training.dataset import Dataset

SAMPLES = 6  # in a picture


def tell(config: Config, data: Dataset, net: Network, plan: Plan, batch: Batch) -> None:
    """Prints the network, the plan, and mean and deviation of the first batch.

    - `config`: settings of the run
    - `data`: data of the run
    - `net`: network to train
    - `plan`: epochs, steps and schedule
    - `batch`: first batch, on the host
    """
    m, o = config.model, config.optimization
    console.print(f"model {m.title}, {net.parameters:,} parameters, init {m.init}, {m.precision}")
    console.print(
        f"plan  {plan.epochs} epochs, {plan.steps:,} steps of {o.batch_size}, {o.loss}, {o.optimizer}, "
        f"learning rate {o.learning_rate:g}, {o.schedule}"
    )
    if (empty := o.batch_size - data.samples) > 0:
        what = f"only {data.samples} tiles for --batch-size {o.batch_size}: {empty} places of each step are empty"
        console.print(f"      {what}; try --batch-size {data.samples}", style="yellow")
    x = np.asarray(normalization(data.reading)(batch["image"][batch["valid"]]))
    mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2))
    shown = [" ".join(f"{value:.3g}" for value in values[:12]) for values in (mean, std)]
    console.print(f"input first batch {'x'.join(map(str, x.shape))}, mean {shown[0]}, deviation {shown[1]}")


def tell_resumed(plan: Plan, before: Plan, progress: Progress, start: int) -> None:
    """Prints where a run continues, and how the learning rate changes there.

    - `plan`: plan of the resumed run
    - `before`: plan of the run when it was stopped
    - `progress`: position of the run
    - `start`: number of the next step, from 0
    """
    if start == 0:
        console.print("resumed from the beginning: the run was stopped before its first checkpoint")
        return
    if start >= plan.steps:
        longer = f"--epochs {2 * plan.epochs}"
        console.print(f"resumed after its end, epoch {progress.epoch}; {longer} would continue it")
        return
    now, was = float(plan.schedule(start)), float(before.schedule(start))
    changed = f" (was {was:.3g}, of {before.steps:,} steps)" if before.steps != plan.steps else ""
    console.print(f"resumed at epoch {progress.epoch + 1}, step {start}, learning rate {now:.3g}{changed}")
    if changed and now > 10 * was:
        advice = "--load the weights into a new run with a lower --learning-rate to avoid that"
        console.print(f"      the learning rate goes up again; {advice}", style="yellow")


def save_batch_picture(tracker: Tracker, data: Dataset, batch: Batch, augment: Augment | None, seed: int) -> None:
    """Draws the first batch as the network sees it, augmented, into samples/batch.png.

    - `tracker`: log of the run
    - `data`: data of the run
    - `batch`: first batch, on the host
    - `augment`: augmentation, or None
    - `seed`: seed of the run
    """
    if augment is not None:
        batch = jax.device_get(jax.jit(augment)(step_key(seed, 0), batch))
    n = min(int(batch["valid"].sum()), SAMPLES)
    images, masks = (np.asarray(batch[name][:n]) for name in ("image", "mask"))
    tracker.pictures("batch", 0, images, masks, class_names=data.classes, palette=data.reading.labels.palette())


def save_predictions(tracker: Tracker, run: Path, data: Dataset, best: dict) -> Path:
    """Draws validation images with predictions of the best checkpoint, and returns the path of the picture.

    - `tracker`: log of the run
    - `run`: folder of the run
    - `data`: data of the run
    - `best`: line of log.jsonl for the best epoch
    """
    net, _ = load_model(run)
    pairs, reading = data.found.split.validation, data.reading
    chosen = pairs[:: max(1, len(pairs) // SAMPLES)][:SAMPLES]
    predictor = Predictor(net, reading, batch_size=1, sides=data.tile)
    samples = [read_sample(pair, reading) for pair in chosen]
    tracker.pictures(
        "predictions",
        best["step"],
        [sample["image"] for sample in samples],
        [sample["mask"] for sample in samples],
        [predictor.classes(sample["image"]) for sample in samples],
        class_names=data.classes,
        captions=[pair.image.stem for pair in chosen],
        palette=reading.labels.palette(),
    )
    return run / "samples" / "predictions.png"


def report(best: dict, run: Path, classes: list[str], images: Path, picture: Path, seconds: float) -> None:
    """Prints the table of scores, the paths of results, and the next command.

    - `best`: line of log.jsonl for the best epoch
    - `run`: folder of the run
    - `classes`: names of the classes
    - `images`: folder of images for the command
    - `picture`: path of the picture of predictions
    - `seconds`: duration of the run
    """
    scores = best["validation"]
    console.print()
    console.print(terminal.result_table(scores, classes, f"validation, best epoch ({best['epoch'] + 1})"))
    console.print(
        f"mIoU {scores['miou']:.4f}   without {classes[0]} {scores['miou_fg']:.4f}   "
        f"pixel accuracy {scores['accuracy']:.4f}"
    )
    console.print(f"{terminal.speed(best['images_per_second'])} in training, {terminal.clock(seconds)} in all")
    console.print(f"\npictures   {picture}\ncurves     {run / 'curves.png'}\nbest model {run / 'checkpoints' / 'best'}")
    console.print("\nnext\n  " + terminal.command("jaxseg.predict", run, images, "-o", run / "predictions"))
