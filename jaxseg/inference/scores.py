"""Scores of single images and of a dataset, with one image in memory at a time."""

import dataclasses

import numpy as np

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import problem
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.mapped import open_tile
from jaxseg.data.read.masks import ClassMap
from jaxseg.data.read.samples import Reading, read_mask
from jaxseg.inference.boundary import BoundaryTotals
from jaxseg.inference.predictor import Predictor, Raster
from jaxseg.inference.progress import ImageBar
from jaxseg.learn import metrics
from jaxseg.runs.pictures import thin


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """Scores of an image: sides and counted pixels, accuracy, mIoU and IoU per class; NaN where undefined."""

    name: str
    height: int
    width: int
    counted: int
    accuracy: float
    miou: float
    iou: tuple[float, ...]

    @property
    def ignored(self) -> int:
        """Number of ignored pixels."""
        return self.height * self.width - self.counted


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image, mask and prediction for worst.png, reduced in size by `pictures.thin`."""

    score: ImageScore
    image: np.ndarray
    mask: np.ndarray
    prediction: np.ndarray


class Scores:
    """Scores of a dataset.

    - `labels`: class map of the run
    - `worst`: number of images to keep for worst.png; the attribute `worst` has them, the lowest mIoU first

    `confusion` is the confusion matrix of all images, int64 [label prediction]; `images` has a score for each.
    """

    def __init__(self, labels: ClassMap, worst: int):
        self.labels, self.worst, self._most = labels, [], worst
        classes = len(labels.names)
        self.confusion = np.zeros((classes, classes), np.int64)
        self.boundary = BoundaryTotals(classes)
        self.images: list[ImageScore] = []

    def add(self, name: str, pair: Pair, reading: Reading, predictor: Predictor | None, bar: ImageBar) -> None:
        """Predicts and scores an image.

        - `name`: name of the image in per_image.csv
        - `pair`: files of image and mask
        - `reading`: how the run reads files
        - `predictor`: None to check only whether both can be read
        - `bar`: progress bar

        Raises DataError when a file cannot be read, or image and mask differ in size.
        """
        image, has_data = open_tile(pair.image, reading)
        mask = read_mask(pair.mask, reading)
        height, width = mask.shape
        if image.shape[:2] != mask.shape:
            what = f"is {width}x{height}, but its image {pair.image.name} is {image.shape[1]}x{image.shape[0]}"
            raise problem(pair.mask, what)
        if predictor is None:
            return
        bar.start(pair.image, mask.size)
        prediction = np.empty(mask.shape, np.uint8)
        for rows, classes, _ in predictor.class_bands(image):
            prediction[rows] = classes
            mask[rows][~has_data[rows, :]] = IGNORE_INDEX
            bar.advance(classes.size)
        self.count(name, image, mask, prediction)

    def count(self, name: str, image: Raster, mask: np.ndarray, prediction: np.ndarray) -> None:
        """Scores a predicted image.

        - `name`: name of the image in per_image.csv
        - `image`: image [h w c], for worst.png
        - `mask`: class numbers [h w]; `IGNORE_INDEX` is ignored
        - `prediction`: class numbers [h w]
        """
        height, width = mask.shape
        confusion = metrics.count_pixels(prediction, mask, len(self.confusion))
        self.confusion += confusion
        self.boundary.add(mask, prediction)
        iou = metrics.iou_score(confusion, "none")
        score = ImageScore(
            name,
            height,
            width,
            int(confusion.sum()),
            metrics.pixel_accuracy(confusion),
            metrics.mean(iou),
            tuple(iou.tolist()),
        )
        self.images.append(score)
        if score.counted:
            self._show(score, image, mask, prediction)

    def summary(self) -> dict[str, float | list[float]]:
        """Returns the scores over all pixels: those of `metrics.summary` and `BoundaryTotals.summary`."""
        return metrics.summary(self.confusion) | self.boundary.summary()

    def _show(self, score: ImageScore, image: Raster, mask: np.ndarray, prediction: np.ndarray) -> None:
        def place(sample: Sample | ImageScore) -> tuple[float, str]:
            return sample.miou, sample.name

        shown = [sample.score for sample in self.worst]
        if self._most and (len(shown) < self._most or place(score) < place(shown[-1])):
            few = (np.array(thin(array)) for array in (image, mask, prediction))  # copies free the whole
            self.worst = sorted([*self.worst, Sample(score, *few)], key=lambda s: place(s.score))[: self._most]
