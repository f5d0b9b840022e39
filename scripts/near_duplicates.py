"""How often does the doctor err about near-duplicates? `python scripts/near_duplicates.py [FOLDER ...] [--count 100]`

For each folder of images, and for four made-up sets, prints how many pairs of different images are called alike, and
how many copies are missed. The sets are crop fields, and three whose images share a frame: noise in a disc, an eye's
background, cells under a microscope. Copies are JPEG at quality 30, half the size, a fifth lighter, or noise of
deviation 8, each flipped or turned at random. About 5 s a set on one core.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from jaxseg.data.find.listing import list_images
from jaxseg.data.made.landscape import make_tile
from jaxseg.data.read.images import read_pixels
from jaxseg.doctor.alike import alike, symmetries
from jaxseg.doctor.facts import THUMBNAIL, thumbnail_of

SIDE = 192
Y, X = np.mgrid[:SIDE, :SIDE] - SIDE / 2
DISC = Y**2 + X**2 < (0.47 * SIDE) ** 2


def field(rng: np.random.Generator) -> np.ndarray:
    return make_tile(rng, 112)[0]


def noise_in_a_disc(rng: np.random.Generator) -> np.ndarray:
    return (DISC * rng.integers(80, 160, (SIDE, SIDE))).astype(np.uint8)


def fundus(rng: np.random.Generator) -> np.ndarray:
    """A disc with shading, a bright spot on the left or right, and dark branching lines from it."""
    spot = SIDE / 4 * rng.choice([-1, 1])
    light = 110 - 30 * (Y**2 + X**2) / (SIDE / 2) ** 2
    light = light + 60 * np.exp(-((Y - rng.normal(0, 6)) ** 2 + (X - spot) ** 2) / 200)
    image = np.clip(light * rng.uniform(0.6, 1.3) + rng.normal(0, 4, light.shape), 0, 255).astype(np.uint8)
    for _ in range(12):
        here, angle = np.array([SIDE / 2 + spot, SIDE / 2]), rng.uniform(0, 2 * np.pi)
        for _ in range(30):
            angle += rng.normal(0, 0.25)
            there = here + 4 * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(image, tuple(here.astype(int).tolist()), tuple(there.astype(int).tolist()), 40, 2)
            here = there
    return (DISC * image).astype(np.uint8)


def cells(rng: np.random.Generator) -> np.ndarray:
    """Dark discs under light that falls off from a point beside the middle."""
    image = 200 - 80 * (Y**2 + (X + SIDE / 8) ** 2) / (SIDE / 2) ** 2 + rng.normal(0, 3, (SIDE, SIDE))
    for _ in range(rng.integers(5, 30)):
        row, column = rng.uniform(-SIDE / 2, SIDE / 2, 2)
        image[(Y - row) ** 2 + (X - column) ** 2 < rng.integers(3, 10) ** 2] -= 60
    return np.clip(image, 0, 255).astype(np.uint8)


def copies(image: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The image with each kind of loss, flipped or turned at random."""
    spoilt = [
        cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_UNCHANGED),
        cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        np.clip(image * 1.2, 0, 255).astype(np.uint8),
        np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8),
    ]
    return [np.ascontiguousarray(list(symmetries(one[None]))[rng.integers(8)][0]) for one in spoilt]


def thumbnails(images: Sequence[np.ndarray]) -> np.ndarray:
    pixels = b"".join(bytes.fromhex(thumbnail_of(image if image.ndim == 3 else image[..., None])) for image in images)
    return np.frombuffer(pixels, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL)


def rates(images: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Pairs of different images that are called alike, of how many; copies that are missed, of how many."""
    known, n = thumbnails(images), len(images)
    wrong = {tuple(sorted((a, b))) for a, b, _ in alike(known, known) if a != b}
    made = [copy for image in images for copy in copies(image, rng)]
    found = {(t, v) for t, v, _ in alike(known, thumbnails(made))}
    missed = sum((i // 4, i) not in found for i in range(len(made)))
    return len(wrong), n * (n - 1) // 2, missed, len(made)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=100, help="images of a made-up set (default: 100)")
    args = parser.parse_args(argv)
    made: tuple[Callable, ...] = (field, noise_in_a_disc, fundus, cells)
    sets = {str(folder): [read_pixels(path).array for path in list_images(folder)] for folder in args.folders}
    sets |= {make.__name__: [make(np.random.default_rng((7, i))) for i in range(args.count)] for make in made}
    print(f"{'set':<24}{'images':>8}{'called alike':>24}{'copies missed':>22}")
    for name, images in sets.items():
        wrong, pairs, missed, total = rates(images, np.random.default_rng(0))
        print(f"{name[-23:]:<24}{len(images):>8}{f'{wrong} of {pairs:,} pairs':>24}{f'{missed} of {total:,}':>22}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
