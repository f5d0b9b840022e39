"""Class weights from the pixels of each class in the training set, for `--class-weights`.

With f a class's share of the labeled pixels:

    inverse    1 / f
    sqrt       1 / sqrt(f)
    median     median(f) / f, with f the share in the pixels of those images in which the class occurs (Badrinarayanan
               et al. 2015, SegNet, arXiv 1511.00561, after Eigen and Fergus 2015)
    effective  (1 - b) / (1 - b^n) for n pixels of the class (Cui et al. 2019, arXiv 1901.05555), with b = 1 - 1 / N
               for N labeled pixels: about 1 / (1 - e^-f). The paper's b = 0.9999 suits some 10,000 images; as a
               constant it gives all classes of more than 100,000 pixels the same weight
    auto       sqrt, halfway between no weights and inverse. Take two classes of 1 % and 99 % and the best possible
               network: a pixel goes to the rare class when its probability exceeds 9 % (no weights: 50 %; inverse:
               1 %, so that most of what it finds is wrong)

These have a mean of 1 over the classes that occur (the scale matters only to `losses.hinge`). A class without a pixel
has weight 1, the average: the data do not say how much it matters, and 1 / f would be infinite. Weights given as
numbers are used as they are, as in PyTorch.
"""

import math
from collections.abc import Sequence

import numpy as np

from jaxseg.base.errors import ArgumentError

AUTOMATIC = ("auto", "inverse", "sqrt", "median", "effective")


def weights(
    class_weights: tuple[str, ...], class_pixels: Sequence[int], image_pixels: Sequence[int] | None = None
) -> tuple[float, ...]:
    """Weight of each class.

    - `class_weights`: one of `AUTOMATIC`, or a number per class, as texts
    - `class_pixels`: pixels of each class in the training set, without ignored ones
    - `image_pixels`: labeled pixels of all images in which the class occurs, for "median". If not given every class
      occurs in every image, and "median" is "inverse"

    Raises ArgumentError, a ValueError, naming everything that is wrong with `class_weights`, or if no pixel is labeled.

    >>> weights(("inverse",), [3, 1])
    (0.5, 1.5)
    """
    check(class_weights, classes=len(class_pixels))
    if (rule := class_weights[0]) not in AUTOMATIC:
        return tuple(map(float, class_weights))
    pixels = np.array(class_pixels, np.float64)
    total, present = pixels.sum(), pixels > 0
    if not total:
        what = f"is {rule}, but no pixel of the training masks has a class; give a number for each class"
        raise ArgumentError([("class_weights", what)])
    share = pixels[present] / total
    if rule == "inverse":
        found = 1 / share
    elif rule == "median":
        whole = total if image_pixels is None else np.array(image_pixels, np.float64)[present]
        found = 1 / (pixels[present] / whole)  # the median only scales
    elif rule == "effective":
        found = -1 / np.expm1(pixels[present] * np.log1p(-1 / max(total, 2)))
    else:
        found = 1 / np.sqrt(share)
    out = np.ones(len(pixels))
    out[present] = found / found.mean()
    return tuple(out.tolist())


def check(class_weights: tuple[str, ...], classes: int | None = None) -> None:
    """Raises ArgumentError, a ValueError, naming everything that is wrong with `class_weights`.

    Without `classes` it checks what does not depend on the data.

    >>> check(("1", "2.5"), classes=2)
    """
    given = class_weights
    if len(given) == 1 and given[0] in AUTOMATIC:
        return
    numbers = {text: _number(text) for text in given}
    wrong = {
        "unknown": [text for text, number in numbers.items() if number is None and text not in AUTOMATIC],
        "not alone": [text for text in numbers if text in AUTOMATIC],
        "not finite": [text for text, number in numbers.items() if number is not None and not math.isfinite(number)],
        "negative": [text for text, number in numbers.items() if number is not None and -math.inf < number < 0],
    }
    problems = [f"{what}: {', '.join(texts)}" for what, texts in wrong.items() if texts]
    if given and all(number == 0 for number in numbers.values()):
        problems.append("all are 0")
    if classes is not None and len(given) != classes:
        problems.append(f"{len(given)} for {classes} classes")
    if not given:
        problems = ["nothing given"]
    if problems:
        count = "a number for each class" if classes is None else f"{classes} numbers, one for each class"
        what = (
            f"is {' '.join(given) or 'empty'} ({'; '.join(problems)}); "
            f"expected one of {', '.join(AUTOMATIC)}, or {count}, of 0 or more and not all 0"
        )
        raise ArgumentError([("class_weights", what)])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
