"""Scores of single images and of a dataset, with one image in memory at a time."""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import problem
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.mapped import open_tile
from jaxseg.data.read.masks import ClassMap
from jaxseg.data.read.samples import Reading, read_mask
from jaxseg.inference.boundary import BoundaryTotals
from jaxseg.inference.predictor import Bands
from jaxseg.inference.progress import ImageBar
from jaxseg.inference.tiles import Raster
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

    def add(
        self,
        name: str,
        image: Raster,
        has_data: Raster,
        mask: UInt8[np.ndarray, "h w"],
        bands: Bands,
        bar: ImageBar,
    ) -> None:
        """Scores an image as its bands come.

        - `name`: name of the image in per_image.csv
        - `image`, `has_data`, `mask`: results of `open_pair`; the mask is changed where there is no data
        - `bands`: classes of the image
        - `bar`: progress bar

        Raises DataError when a file can no longer be read.
        """
        prediction = np.empty(mask.shape, np.uint8)
        for rows, classes, _ in bands:
            prediction[rows] = classes
            mask[rows][~has_data[rows, :]] = IGNORE_INDEX
            bar.advance(classes.size)
        self.count(name, image, mask, prediction)

    def include(self, others: "Scores") -> None:
        """Adds the scores of other images of the dataset."""
        self.confusion += others.confusion
        self.boundary.include(others.boundary)
        self.images += others.images
        self._keep([*self.worst, *others.worst])

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
        if self._most and (len(self.worst) < self._most or _place(score) < _place(self.worst[-1].score)):
            few = (np.array(thin(array)) for array in (image, mask, prediction))  # copies free the whole
            self._keep([*self.worst, Sample(score, *few)])

    def _keep(self, samples: list[Sample]) -> None:
        self.worst = sorted(samples, key=lambda sample: _place(sample.score))[: self._most]


def _place(score: ImageScore) -> tuple[float, str]:
    return score.miou, score.name


def open_pair(pair: Pair, reading: Reading) -> tuple[Raster, Raster, UInt8[np.ndarray, "h w"]]:
    """Opens an image [h w c], its data mask [h w], and its mask.

    - `pair`: files of image and mask
    - `reading`: how the run reads files

    Raises DataError when a file cannot be read, or image and mask differ in size.
    """
    image, has_data = open_tile(pair.image, reading)
    mask = read_mask(pair.mask, reading)
    (height, width), (h, w) = mask.shape, image.shape[:2]
    if (h, w) != (height, width):
        raise problem(pair.mask, f"is {width}x{height}, but its image {pair.image.name} is {w}x{h}")
    return image, has_data, mask
