"""Images that are read and started ahead: their order, their faults, and how many are in memory."""

from collections.abc import Sequence

import numpy as np
import pytest

from jaxseg.base.errors import DataError
from jaxseg.inference.ahead import predict_ahead
from jaxseg.inference.predictor import Predictor


class Network(Predictor):
    """Stands for a predictor on some devices: notes which images it is to predict together."""

    def __init__(self, devices: int):
        self.devices, self.started = type("", (), {"count": devices}), []

    def is_small(self, image: np.ndarray) -> bool:
        return max(image.shape[:2]) <= 8

    def start(self, images: Sequence[np.ndarray]) -> list:
        self.started.append([int(image[0, 0, 0]) for image in images])
        return [iter([int(image[0, 0, 0])]) for image in images]


SIDES = {0: 8, 1: 8, 2: 8, 3: 20, 4: 8, 5: 8, 6: 8, 7: 8}


def read(number: int) -> tuple:
    if number == 5:
        raise DataError("Cannot read.", ["5: is damaged"])
    return np.full((SIDES[number], 8, 1), number, np.uint8), f"beside {number}"


@pytest.mark.parametrize(
    ("devices", "groups"),
    [
        (1, [[0], [1], [2], [3], [4], [], [6], [7]]),
        (2, [[0, 1], [2, 3], [4], [6, 7]]),
        (8, [[0, 1, 2, 3], [4, 6, 7]]),
    ],
)
def test_small_images_are_started_together_and_come_in_order(devices, groups):
    network, seen = Network(devices), []
    for number, opened, bands in predict_ahead(range(8), read, network):
        seen.append(number)
        if number == 5:
            assert list(bands) == []
            with pytest.raises(DataError, match="5: is damaged"):
                opened.result()
        else:
            assert list(bands) == [number]
            assert opened.result()[1] == f"beside {number}"
    assert seen == list(range(8))
    assert [group for group in network.started if group or devices == 1][: len(groups)] == groups


@pytest.mark.parametrize("devices", [1, 2])
def test_no_more_than_the_next_group_is_read_ahead(devices):
    opened = []

    def note(number: int) -> tuple:
        opened.append(number)
        return np.zeros((8, 8, 1), np.uint8), None

    for number, *_ in predict_ahead(range(8), note, Network(devices)):
        assert len(opened) <= (number // devices + 2) * devices


def test_small_images_are_read_whole_and_large_ones_by_windows():
    class Mapped:
        dtype = np.dtype(np.uint8)

        def __init__(self, side: int):
            self.shape, self.windows = (side, 8, 1), []

        def __getitem__(self, where: tuple) -> np.ndarray:
            self.windows.append(where)
            return np.zeros(self.shape, np.uint8)

    images = [Mapped(8), Mapped(20)]
    network = Network(1)
    network.start = lambda images: [iter(()) for _ in images]
    list(predict_ahead(images, lambda image: (image,), network))
    assert [len(image.windows) for image in images] == [1, 0]
