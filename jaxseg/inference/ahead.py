"""Predicts many images: the next ones are read and started while one is scored or written."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from jaxseg.inference.predictor import Bands, Predictor, one_behind

T = TypeVar("T")


def predict_ahead(
    items: Sequence[T], read: Callable[[T], tuple], predictor: Predictor
) -> Iterator[tuple[T, Future, Bands]]:
    """Yields each item with the result of `read`, as a future that is done, and the bands of its image.

    - `items`: what to predict
    - `read`: returns a tuple that begins with the image; may raise any error, and the item then has no bands
    - `predictor`: network

    Images of a single tile are read whole, and predicted together: one on each device. In memory are the images of
    such a group and of the next; a larger image ends a group.
    """
    rest = iter(items)

    def read_small(item: T) -> tuple:
        image, *others = read(item)
        height, width = image.shape[:2]
        return (image[:height, :width] if predictor.is_small(image) else image, *others)

    def begin() -> list[tuple[T, Future, Bands]]:
        group, images = [], {}
        for item in rest:
            found = reader.submit(read_small, item)
            group.append((item, found))
            if found.exception() is None:
                images[found], *_ = found.result()
                if not predictor.is_small(images[found]):
                    break
            if len(group) == predictor.devices.count:
                break
        bands = dict(zip(images, predictor.start([*images.values()])))
        return [(item, found, bands.get(found, iter(()))) for item, found in group]

    with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "starter") as starter:
        for begun in one_behind(starter.submit(begin) for _ in items):
            yield from begun.result()
