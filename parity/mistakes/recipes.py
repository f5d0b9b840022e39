"""Runs put together wrongly: settings that a builder forgets or exchanges, keys, orders, and what validation takes.

Each names the settings of a recipe that shows it, so that one recipe is asked, not a tenth of all.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxseg.data.feed.pipeline import Pipeline
from jaxseg.data.read import samples
from jaxseg.doctor import values
from jaxseg.learn import augment, class_weights, compiled, losses, metrics, optimizers, schedules, step
from jaxseg.nn import layers, unet
from jaxseg.training import assembly, dataset, loop, steps
from jaxseg.training.dataset import Dataset
from parity.mistakes import Mistake, mistake

LOSS = (losses, "loss_from")
OPTIMIZER = (optimizers, "optimizer_from")
SCHEDULE = (schedules, "schedule_from")
PLATEAU = (loop, "watch_plateau")
NET = (unet, "unet_from")
AUGMENT = (augment, "augment_from")


def without(*names: str) -> Callable:
    """A builder that ignores settings: they have their defaults."""
    return changed(lambda settings: {name: getattr(type(settings), name) for name in names})


def changed(change: Callable) -> Callable:
    """A builder that reads other settings; `change` returns the fields to replace."""

    def wrong(right):
        def build(settings, *args, **kwargs):
            return right(dataclasses.replace(settings, **change(settings)), *args, **kwargs)

        return build

    return wrong


def how(**wrong_options) -> Callable:
    """A compiled step with other options."""
    return lambda right: lambda *args, **options: right(*args, **options | wrong_options)


def dice_without_weights(right):
    """Gives the class weights to other losses than Dice alone."""
    return lambda settings, weights=None: right(settings, None if settings.loss == "dice" else weights)


def one_hard_pixel_less(right):
    """Rounds the share of hard pixels down."""
    return lambda loss, keep, share: right(loss, keep, max(share - 1 / keep.size, 1e-3))


def share_of_all_pixels(right):
    """Takes the share of all pixels, ignored ones included."""
    return lambda loss, keep, share: right(jnp.where(keep, loss, -jnp.inf), jnp.ones_like(keep), share)


def before_the_update(right):
    """Averages the weights from before each update."""

    def make(decay):
        inner = right(decay)

        def update(updates, state, params=None):
            return updates, inner.update(jax.tree.map(jnp.zeros_like, updates), state, params)[1]

        return inner._replace(update=update)

    return make


def clipped_last(right):
    """Clips the update instead of the gradient."""

    def build(settings, schedule, *more):
        if settings.clip_norm is None:
            return right(settings, schedule, *more)
        plain = right(dataclasses.replace(settings, clip_norm=None, ema=None), schedule, *more)
        return optimizers.optax.chain(plain, optimizers.clip_by_global_norm(settings.clip_norm))

    return build


def bias_gradient_in_float32(right):
    """Sums the gradient of a bias in float32."""

    def add(y, bias):
        low = jnp.broadcast_to(bias.astype(jnp.float32), y.shape).astype(y.dtype)
        return right(y, jax.lax.stop_gradient(bias)) + low - jax.lax.stop_gradient(low)

    return add


def mean_of_batches(right):
    """Weighs every batch of the validation alike."""

    def add(self, record):
        right(self, record)
        self.seen = [*getattr(self, "seen", []), float(record["loss"])]
        self._loss = np.mean(self.seen) * int(self._confusion.sum())

    return add


def batch_statistics(right):
    """Validates with the statistics of the batch."""
    return lambda net: nnx.view(net, use_running_average=False, deterministic=True)


def eight_batches(right):
    """Validates on the first eight batches, a limit left in from debugging."""
    return lambda step, data, epoch, most=None: right(step, data, epoch, most or 8)


def in_rgb(right):
    """Takes ImageNet's statistics in the order red, green, blue whatever the channels are."""
    return lambda rgb, asked, color: rgb


def first_epochs_order(right):
    """Draws one order for all epochs."""
    return lambda self, epoch: right(self, 0)


def first_epochs_crops(right):
    """Draws the same crops in every epoch."""
    return lambda self, size, draw: right(self, size, (draw[0], 0, draw[2]))


def other_change_first(right):
    """Adds brightness before contrast: they draw each other's numbers."""
    return lambda key, batch, most: right(jax.random.fold_in(key, 1), batch, most)


def validation_counts(right):
    """Counts the classes of the validation images."""
    return property(lambda self: self.found.validation.class_pixels)


def nothing_ignored(right):
    """Trains on pixels without data."""
    return lambda *args: (None, right(*args)[1])


def asks(recipe: str, wrong: Mistake) -> Mistake:
    """The mistake, shown by a recipe with these values, separated by commas."""
    return dataclasses.replace(wrong, recipe=tuple(recipe.split(", ")))


SGD = "--optimizer sgd, --learning-rate 0.004, --schedule constant"
MISTAKES = [
    asks("--loss dice, --class-weights inverse", mistake("Dice: class weights dropped", *LOSS, dice_without_weights)),
    asks(
        "--loss hinge, --class-weights NUMBERS",
        mistake("class weights dropped", *LOSS, lambda right: lambda settings, weights=None: right(settings)),
    ),
    asks(
        "--class-weights median, absent class",
        mistake("class weights of the validation images' pixels", Dataset, "class_pixels", validation_counts),
    ),
    asks(
        "--class-weights median, absent class",
        mistake(
            "median: shares of all pixels",
            class_weights,
            "weights",
            lambda right: lambda rule, pixels, around: right(rule, pixels),
        ),
    ),
    asks(
        "--loss tversky, --tversky-alpha 0.3, --tversky-beta 0.8",
        mistake(
            "Tversky: alpha and beta exchanged",
            *LOSS,
            changed(lambda o: {"tversky_alpha": o.tversky_beta, "tversky_beta": o.tversky_alpha}),
        ),
    ),
    asks("--loss tversky, --tversky-beta 0.8", mistake("--tversky-beta dropped", *LOSS, without("tversky_beta"))),
    asks("--loss focal, --focal-gamma 1.3", mistake("--focal-gamma dropped", *LOSS, without("focal_gamma"))),
    asks(
        "--loss dice_ce, --label-smoothing 0.1",
        mistake(
            "Dice and cross-entropy: label smoothing dropped",
            losses,
            "dice_ce",
            lambda right: lambda *args, label_smoothing=0.0, **options: right(*args, **options),
        ),
    ),
    asks("--ohem 0.3", mistake("--ohem dropped", *LOSS, without("ohem"))),
    asks("--ohem 0.3", mistake("--ohem: rounded down", losses, "_hardest", one_hard_pixel_less)),
    asks("--ohem 0.3, --nodata 0", mistake("--ohem: share of all pixels", losses, "_hardest", share_of_all_pixels)),
    asks("--dropout 0.4", mistake("--dropout dropped", *NET, without("dropout"))),
    asks("--dropout 0.4", mistake("--dropout: the share kept", *NET, changed(lambda m: {"dropout": 1 - m.dropout}))),
    asks("--dropout 0.4", mistake("dropout from another key", step, "DROPOUT", lambda right: 0)),
    asks(
        "--seed 5",
        mistake(
            "--seed dropped from the weights",
            *NET,
            lambda right: lambda settings, **how: right(settings, **how | {"seed": 0}),
        ),
    ),
    asks("--init xavier_uniform", mistake("--init dropped", *NET, without("init"))),
    asks("--upsample bilinear", mistake("--upsample dropped", *NET, without("upsample"))),
    asks("--no-conv-bias", mistake("--no-conv-bias dropped", *NET, without("conv_bias"))),
    asks("--no-flips, --init kaiming_normal", mistake("--no-flips dropped", *AUGMENT, without("flips"))),
    asks("--no-augment, --zoom 0.5", mistake("--no-augment dropped", *AUGMENT, without("augment"))),
    asks("--zoom 0.5", mistake("--zoom dropped", *AUGMENT, without("zoom"))),
    asks(
        "--brightness 0.2, --contrast 0.3",
        mistake(
            "brightness and contrast exchanged",
            *AUGMENT,
            changed(lambda a: {"brightness": a.contrast, "contrast": a.brightness}),
        ),
    ),
    asks("--contrast 0.3, --noise 0.1", mistake("contrast from another key", augment, "contrast", other_change_first)),
    asks(
        "--seed 5, --zoom 0.5",
        mistake("step's key: --seed dropped", step, "step_key", lambda right: lambda _, number: right(0, number)),
    ),
    asks(
        "--zoom 0.5",
        mistake("step's key: the same in every step", step, "step_key", lambda right: lambda seed, _: right(seed, 0)),
    ),
    asks(
        "--zoom 0.5, --warmup-epochs 1",
        mistake(
            "step's key: counted from 1", step, "step_key", lambda right: lambda seed, number: right(seed, number + 1)
        ),
    ),
    asks("--optimizer adam", mistake("biases: gradient in float32", layers, "_add_bias", bias_gradient_in_float32)),
    asks("--ema 0.9", mistake("average: before the update", optimizers, "average_parameters", before_the_update)),
    asks(
        "--ema 0.9",
        mistake(
            "average: weight of the new value",
            optimizers,
            "average_parameters",
            lambda right: lambda decay: right(1 - decay),
        ),
    ),
    asks("--ema 0.9", mistake("average not evaluated", optimizers, "averaged", lambda right: lambda net, _: net)),
    asks(f"{SGD}, --momentum 0.5", mistake("--momentum dropped", *OPTIMIZER, without("momentum"))),
    asks(f"{SGD}, --nesterov", mistake("--nesterov dropped", *OPTIMIZER, without("nesterov"))),
    asks(
        "--optimizer rmsprop, --momentum 0",
        mistake(
            "RMSprop: --momentum dropped",
            *OPTIMIZER,
            changed(lambda o: {"momentum": 0.9} if o.optimizer == "rmsprop" else {}),
        ),
    ),
    asks(
        "--optimizer adamw, --weight-decay 0.05", mistake("--weight-decay dropped", *OPTIMIZER, without("weight_decay"))
    ),
    asks(
        "--optimizer adamw",
        mistake(
            "AdamW: Optax's default decay",
            *OPTIMIZER,
            changed(lambda o: {"weight_decay": 1e-4} if o.weight_decay is None else {}),
        ),
    ),
    asks(f"{SGD}, --clip-norm 0.3", mistake("--clip-norm dropped", *OPTIMIZER, without("clip_norm"))),
    asks(
        "--clip-norm 0.3, --learning-rate 0.004, --schedule constant",
        mistake("clipping: after the update", *OPTIMIZER, clipped_last),
    ),
    asks("--schedule polynomial --power 2", mistake("--power dropped", *SCHEDULE, without("power"))),
    asks("--schedule exponential --period 2 --gamma 0.5", mistake("--gamma dropped", *SCHEDULE, without("gamma"))),
    asks("--schedule factor --period 1 --gamma 0.5", mistake("--period dropped", *SCHEDULE, without("period"))),
    asks(
        "--schedule cosine_restarts --period 1 --cycle-factor 2",
        mistake("--cycle-factor dropped", *SCHEDULE, without("cycle_factor")),
    ),
    asks(
        "--schedule linear, --warmup-epochs 1", mistake("--warmup-epochs dropped", *SCHEDULE, without("warmup_epochs"))
    ),
    asks(
        "--schedule linear, --schedule-per epoch", mistake("--schedule-per dropped", *SCHEDULE, without("schedule_per"))
    ),
    asks("--begin-lr 0.0003", mistake("--begin-lr dropped", *SCHEDULE, without("begin_lr"))),
    asks("--schedule linear, --final-lr 0.0004", mistake("--final-lr dropped", *SCHEDULE, without("final_lr"))),
    asks(
        "--schedule cosine, --steps 5",
        mistake("--steps dropped from the schedule", *SCHEDULE, changed(lambda o: {"steps": None, "epochs": 40})),
    ),
    asks(
        "--schedule plateau --patience 0 --gamma 0.2, --overfit 3",
        mistake("plateau: --patience dropped", *PLATEAU, without("patience")),
    ),
    asks(
        "--schedule plateau --patience 0 --gamma 0.2, --final-lr 0.0004, --overfit 3",
        mistake("plateau: --final-lr dropped", *PLATEAU, without("final_lr")),
    ),
    asks("--accumulate 2", mistake("--accumulate dropped", assembly, "compile_train_step", how(accumulate=1))),
    asks(
        "--accumulate 2, --batch-size 6",
        mistake(
            "micro-batches: equal shares",
            step,
            "shares",
            lambda right: lambda masks: jnp.full(len(masks), 1 / len(masks)),
        ),
    ),
    asks(
        "--normalize dataset",
        mistake("--normalize dropped in validation", assembly, "compile_eval_step", how(normalize=step.normalize)),
    ),
    asks("--normalize imagenet", mistake("--normalize imagenet: red first", values, "_imagenet", in_rgb)),
    asks(
        "--loss dice, --class-weights inverse",
        mistake("validation: another loss", assembly, "compile_eval_step", how(loss=losses.cross_entropy)),
    ),
    asks("--epochs 6", mistake("validation: mean of the batches", metrics.Totals, "add", mean_of_batches)),
    asks("oblong", mistake("validation: eight batches at most", steps, "evaluate", eight_batches)),
    asks("--epochs 6", mistake("validation: statistics of the batch", compiled, "evaluation", batch_statistics)),
    asks("--crop 12", mistake("crops: one for all epochs", Pipeline, "_corner", first_epochs_crops)),
    asks("--no-augment", mistake("order: one for all epochs", Pipeline, "order", first_epochs_order)),
    asks("mixed", mistake("default crop: of a fixed side", dataset, "CROP", lambda right: 12)),
    asks("--nodata 0", mistake("pixels without data: trained on", samples, "find_missing", nothing_ignored)),
]
