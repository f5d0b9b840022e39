"""A whole training run in PyTorch, read from the settings alone: files, order, crops, augmentation, steps, scores.

Nothing here knows how jaxseg builds a run. What is random by JAX (augmentation, dropout, initial weights) is
handed in; order and crops follow from NumPy's generator with the seeds that the settings state.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jaxseg.base.config import LARGEST, Config, Optimization
from jaxseg.base.errors import UserError
from parity.reference import augmentation, files, training
from parity.reference.augmentation import Draws
from parity.reference.class_weights import class_weights
from parity.reference.files import Labels, Pair, Reader
from parity.reference.losses import IGNORE_INDEX
from parity.reference.resnet import EncoderUNet
from parity.reference.unet import UNet

Batch = tuple[list[np.ndarray], list[np.ndarray]]
"""Images [h w c] and masks [h w] of the valid samples, as read and cropped."""


class Recipe:
    """The run that `config` describes, in float64 on the CPU.

    training, validation: pairs of files, in order.
    labels: of the masks.

    Raises UserError for settings that the reference does not know.
    """

    def __init__(self, config: Config, training_pairs: Sequence[Pair], validation: Sequence[Pair], labels: Labels):
        if unknown := not_known(config):
            raise UserError("\n".join(unknown))
        o, d = config.optimization, config.data
        if config.run.overfit:
            training_pairs = validation = training_pairs[: config.run.overfit]
        self.config, self.labels, self.pairs, self.validation = config, labels, training_pairs, validation
        found = files.survey(training_pairs, Reader(d, labels))
        color = any(files.is_color(image) for image, _ in [*training_pairs, *validation])
        pictures = all(files.has_8_bits(image) for image, _ in [*training_pairs, *validation])
        self.standard = files.standardization(d, color, found, pictures)
        self.reader = Reader(d, labels, self.standard and self.standard[0])
        self.crop = crop_side(config, found.sizes)
        self.epoch_steps = -(-len(training_pairs) * d.crops // o.batch_size)
        weights = class_weights(o.class_weights, found.pixels, found.around) if o.class_weights else None
        self.loss = partial(training.LOSSES[o.loss](o), class_weights=weights)
        flat = dataclasses.replace(o, schedule="constant") if o.schedule == "plateau" else o
        self.rates = training.learning_rates(flat, self.epoch_steps)
        m, channels = config.model, len(found.mean)
        if m.encoder:
            self.model = EncoderUNet(m.encoder, channels, labels.classes).double()
        else:
            self.model = UNet(channels, labels.classes, m.widths, m.upsample, m.conv_bias).double()
        self.steps = 0

    def start(self, weights: Mapping[str, np.ndarray]) -> None:
        """Takes copies of `weights`, and a fresh optimizer.

        Weights of a network of another shape are left out, and show where weights are compared afterwards.
        """
        mine = self.model.state_dict()
        fitting = {name: torch.tensor(x) for name, x in weights.items() if mine.get(name, x).shape == x.shape}
        self.model.load_state_dict(fitting, strict=False)
        o = self.config.optimization
        self.optimizer = training.OPTIMIZERS[o.optimizer](training.groups(self.model, o), o)
        self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(o.ema)) if o.ema else self.model
        self.plateau = Plateau(o) if o.schedule == "plateau" else None

    # Data -------------------------------------------------------------------------------------------------------------

    def batch(self, epoch: int, number: int) -> Batch:
        """Samples of batch `number` of an epoch."""
        seed, size, count = self.config.run.seed, self.config.optimization.batch_size, len(self.pairs)
        order = np.random.default_rng((seed, epoch)).permutation(count * self.config.data.crops)
        images, masks = [], []
        for position in range(number * size, min((number + 1) * size, len(order))):
            image, mask = self.reader.read(self.pairs[order[position] % count])
            if self.crop is not None:
                room = np.maximum(np.array(mask.shape) - self.crop, 0)
                y, x = np.random.default_rng((seed, epoch, position)).integers(0, room + 1)
                cut = slice(y, y + self.crop), slice(x, x + self.crop)
                image, mask = padded(image[cut], mask[cut], (self.crop, self.crop))
            images.append(image)
            masks.append(mask)
        return images, masks

    def tensors(self, batch: Batch, draws: Sequence[Draws] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Images float64 [b c h w], augmented by the `draws` of each sample, standardized; masks int64 [b h w]."""
        images, masks = [], []
        for image, mask, drawn in zip(*batch, draws or [{}] * len(batch[0])):
            if "flips" in drawn:
                image, mask = (augmentation.turned(x, *drawn["flips"]) for x in (image, mask))
            x = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1) / files.RANGE.get(image.dtype.name, 1)
            y = torch.from_numpy(mask.astype(np.int64))
            x, y = augmentation.changed(x, y, drawn, self.config.augmentation.blur)
            if self.standard is not None:
                mean, std = (torch.from_numpy(np.array(values))[:, None, None] for values in self.standard)
                x = (x - mean) / std
            images.append(x)
            masks.append(y)
        return torch.stack(images), torch.stack(masks)

    # Steps ------------------------------------------------------------------------------------------------------------

    def step(
        self, batch: Batch, draws: Sequence[Draws] | None = None, kept: np.ndarray | None = None
    ) -> tuple[float, float]:
        """Takes one update; returns its loss and learning rate.

        draws: of the augmentation, for each sample.
        kept: bool [b c h w], deepest features that dropout keeps; None drops nothing.
        """
        o, images = self.config.optimization, self.tensors(batch, draws)
        rate = self.rates[self.steps] * (self.plateau.scale if self.plateau else 1.0)
        if o.freeze_encoder:
            self.model.freeze(self.steps < o.freeze_encoder * self.epoch_steps)
        self.steps += 1
        training.set_learning_rate(self.optimizer, rate)
        part = o.batch_size // o.accumulate if o.accumulate > 1 else None
        if kept is not None:
            factors = torch.from_numpy(kept / (1 - self.config.model.dropout))
            kept = factors.split(part or len(factors))
        loss = training.training_step(self.model, self.optimizer, *images, self.loss, o.clip_norm, part, kept)
        if self.averaged is not self.model:
            self.averaged.update_parameters(self.model)
        return float(loss), rate

    def validate(self, most: int | None = None) -> dict[str, np.ndarray]:
        """Mean loss over the pixels, scores by class, and shares predicted, of the first `most` batches or all.

        Averaged weights are taken if there are any. Scores that are 0 / 0 are NaN.
        """
        loss, pixels, confusion = 0.0, 0, torch.zeros(2 * (self.labels.classes,), dtype=torch.int64)
        self.averaged.eval()
        for batch in self.validation_batches()[:most]:
            images, masks = self.tensors(self.read(batch))
            value, predictions = training.evaluation_step(self.averaged, images, masks, self.loss)
            counted = int((masks != IGNORE_INDEX).sum())
            loss, pixels = loss + float(value) * counted, pixels + counted
            confusion += training.confusion_matrix(masks, predictions, self.labels.classes)
        self.averaged.train()
        matrix = confusion.double()
        right, true, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        scores = {"iou": right / (true + predicted - right), "recall": right / true, "precision": right / predicted}
        scores |= {"miou": scores["iou"].nanmean(), "accuracy": right.sum() / matrix.sum()}
        scores |= {"predicted": predicted / matrix.sum(), "loss": torch.tensor(loss / pixels, dtype=torch.float64)}
        return {name: value.numpy() for name, value in scores.items()}

    def end_epoch(self, miou: float) -> None:
        """Lowers the rate of --schedule plateau where PyTorch's scheduler does."""
        if self.plateau is not None:
            self.plateau.step(miou)

    def validation_batches(self) -> list[list[tuple[int, tuple[int, int]]]]:
        """Batches of (number of the pair, height and width to pad to). Those of one shape follow each other."""
        sizes = [files.read_mask(mask, self.labels).shape for _, mask in self.validation]
        if max(map(max, sizes)) > LARGEST:
            raise UserError(f"validation images of more than {LARGEST} pixels a side are not known to the reference")
        shapes = sizes if len(set(sizes)) == 1 else [tuple(-(-side // 32) * 32 for side in size) for size in sizes]
        if len(set(shapes)) > 4:
            raise UserError(
                "validation images of more than four shapes, in steps of 32, are not known to the reference"
            )
        size, batches = self.config.optimization.batch_size, []
        for shape in dict.fromkeys(shapes):
            members = [(number, shape) for number, its in enumerate(shapes) if its == shape]
            batches += [members[i : i + size] for i in range(0, len(members), size)]
        return batches

    def read(self, members: Sequence[tuple[int, tuple[int, int]]]) -> Batch:
        """Validation samples, padded."""
        samples = [padded(*self.reader.read(self.validation[number]), shape) for number, shape in members]
        return [image for image, _ in samples], [mask for _, mask in samples]

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of parameters and running statistics."""
        state = self.model.state_dict().items()
        return {name: x.numpy().copy() for name, x in state if not name.endswith("num_batches_tracked")}


class Plateau:
    """`torch.optim.lr_scheduler.ReduceLROnPlateau(mode="max")`, as a factor of the peak rate."""

    def __init__(self, o: Optimization):
        self._optimizer, self._peak = torch.optim.SGD([torch.zeros(1)], lr=o.learning_rate), o.learning_rate
        self._scheduler = ReduceLROnPlateau(self._optimizer, "max", o.gamma, o.patience, min_lr=o.final_lr)

    @property
    def scale(self) -> float:
        """The rate over the peak."""
        return self._optimizer.param_groups[0]["lr"] / self._peak if self._peak else 1.0

    def step(self, metric: float) -> None:
        """Takes the metric of an epoch."""
        self._scheduler.step(metric)


def crop_side(config: Config, sizes: Sequence[tuple[int, int]]) -> int | None:
    """Side of the training crops: as given, else 512 or less where sizes differ or are large; None for whole images."""
    if config.data.crop is not None:
        return config.data.crop
    if len(set(sizes)) == 1 and max(sizes[0]) <= LARGEST:
        return None
    least = 32 if config.model.encoder else 2 ** (len(config.model.widths) - 1)
    return max(least, min(512, int(np.median([min(size) for size in sizes]))) // least * least)


def padded(image: np.ndarray, mask: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pads below and on the right to `shape`: the image mirrored, the mask ignored."""
    missing = [(0, side - there) for side, there in zip(shape, mask.shape)]
    image = np.pad(image, [*missing, (0, 0)], mode="symmetric")
    return image, np.pad(mask, missing, constant_values=IGNORE_INDEX)


def not_known(config: Config) -> list[str]:
    """Settings that the reference does not know, a line each; empty if it knows all."""
    d, wrong = config.data, []
    if d.snap_colors:
        wrong.append("--snap-colors is not known to the reference")
    if config.data.ignore_index and any(str(label).startswith("#") for label in d.labels or ()):
        wrong.append("--ignore-index with colored --labels is not known to the reference")
    return wrong
