"""Draws one tile of `fields.py`: farmland seen from the air, and its mask of fields.

The land is cut into parcels. Some are fields, with crop rows, wheel tracks and bare patches. Others are meadow, fallow
land or woods **in the same colors**: rows and shapes tell the class of a pixel, its color does not. Streams, ponds,
roads, farms, trees with shadows, cloud shadows, uneven light and noise lie over them.

The same seed gives the same pixels on every platform. NumPy computes them from integers, and from float64 operations
whose results IEEE 754 fixes: no sine, no normal deviates, no drawing library.
"""

import dataclasses

import numpy as np
from jaxtyping import UInt8

# RGB as seen from the air. Fields, meadows and fallow land share the ground colors.
GROUND = np.array(
    [[58, 96, 62], [84, 128, 70], [112, 150, 84], [96, 104, 66], [150, 160, 108], [196, 178, 136], [168, 142, 104],
     [132, 106, 80]], float
)  # fmt: skip
LEAVES = np.array([[40, 62, 40], [52, 78, 44], [66, 88, 50]], float)
WATER = np.array([[44, 66, 70], [62, 86, 84], [70, 84, 66]], float)
ROADS = np.array([[150, 148, 142], [122, 122, 122], [186, 168, 136]], float)
ROOFS = np.array([[226, 224, 218], [168, 172, 176], [150, 74, 58], [96, 92, 92]], float)


@dataclasses.dataclass
class Tile:
    """Tile being drawn.

    - `image`: float64 [h w 3] RGB, 0..255.
    - `field`: bool [h w], true in fields.
    - `u`, `v`: float64 [h w], coordinates along the parcels' sides, in pixels from the middle.
    - `ground`: float64 [3] RGB, the color of the grass.
    - `sun`: int [2], the offset (x, y) of shadows in pixels.
    """

    rng: np.random.Generator
    size: int
    image: np.ndarray
    field: np.ndarray
    u: np.ndarray
    v: np.ndarray
    ground: np.ndarray
    sun: np.ndarray

    def between(self, low: int | float, high: int | float) -> float:
        """Draws a number from [low, high). `Generator.uniform` may round differently where C fuses operations."""
        return low + (high - low) * self.rng.random()

    def paint(self, where: np.ndarray, color: np.ndarray, texture: np.ndarray) -> None:
        """Paints pixels and adds brightness.

        - `where`: bool [h w], the pixels.
        - `color`: [3] RGB, 0..255.
        - `texture`: [h w], brightness added to each channel.
        """
        self.image[where] = color + texture[where, None]

    def noise(self, cell: int | float) -> np.ndarray:
        """Draws `noise` for this tile, float64 [h w], -1..1."""
        return noise(self.rng, self.size, cell)

    def blotches(self) -> np.ndarray:
        """Draws irregular texture of several scales, float64 [h w], about -1..1."""
        return sum(weight * self.noise(cell) for cell, weight in ((24, 0.5), (11, 0.4), (5, 0.4), (2.5, 0.35)))


def noise(rng: np.random.Generator, size: int, cell: int | float) -> np.ndarray:
    """Draws value noise, float64 [size size], -1..1: a random lattice of `cell` pixels, smoothly interpolated."""
    at = np.arange(size) / cell + rng.random()
    i = at.astype(int)
    f = (at - i) * (at - i) * (3 - 2 * (at - i))
    lattice = rng.random((i[-1] + 2, i[-1] + 2)) * 2 - 1
    rows = lattice[i] * (1 - f)[:, None] + lattice[i + 1] * f[:, None]
    return rows[:, i] * (1 - f) + rows[:, i + 1] * f


def new_tile(rng: np.random.Generator, size: int) -> Tile:
    """Draws rough grassland, with a rotated and slightly bent coordinate frame."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    slope = rng.random() * 2 - 1
    cos, sin = (1 - slope * slope) / (1 + slope * slope), 2 * slope / (1 + slope * slope)  # rational, thus exact
    u, v = cos * x + sin * y + 4 * noise(rng, size, 72), cos * y - sin * x + 4 * noise(rng, size, 72)
    sun = rng.integers(2, 5, size=2) * rng.choice([-1, 1], size=2)
    tile = Tile(rng, size, np.zeros((size, size, 3)), np.zeros((size, size), bool), u, v, ground_color(rng), sun)
    tile.image += tile.ground + 10 * tile.blotches()[..., None]
    return tile


def ground_color(rng: np.random.Generator) -> np.ndarray:
    """Draws a color for fields, meadows or grass, float64 [3] RGB."""
    first, second = GROUND[rng.integers(len(GROUND), size=2)]
    return first + 0.4 * rng.random() * (second - first) + rng.integers(-10, 11) + rng.integers(-5, 6, size=3)


def wave(x: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1, from -1 to 1."""
    return 4 * np.abs(x - np.floor(x) - 0.5) - 1


def split(tile: Tile, box: tuple) -> list[tuple]:
    """Cuts a box (u0, u1, v0, v1) across its longer side, recursively, into parcels."""
    u0, u1, v0, v1 = box
    if max(u1 - u0, v1 - v0) < tile.between(68, 104):
        return [box]
    at = tile.between(0.38, 0.62)
    u, v = u0 + at * (u1 - u0), v0 + at * (v1 - v0)
    halves = [(u0, u, v0, v1), (u, u1, v0, v1)] if u1 - u0 > v1 - v0 else [(u0, u1, v0, v), (u0, u1, v, v1)]
    return [parcel for half in halves for parcel in split(tile, half)]


def inside(tile: Tile, box: tuple, margin: int | float) -> np.ndarray:
    """True for pixels in a box (u0, u1, v0, v1) and more than `margin` pixels from its sides, bool [h w]."""
    u0, u1, v0, v1 = box
    return (np.minimum(tile.u - u0, u1 - tile.u) > margin) & (np.minimum(tile.v - v0, v1 - tile.v) > margin)


def crop(tile: Tile, box: tuple) -> None:
    """Draws a field with wheel tracks and patches; crop rows follow one side, or circles around the middle."""
    u0, u1, v0, v1 = box
    u, v, radius = tile.u, tile.v, min(u1 - u0, v1 - v0) / 2
    edge = np.minimum(np.minimum(u - u0, u1 - u), np.minimum(v - v0, v1 - v))  # pixels to the parcel's nearest side
    across = u if tile.rng.random() < 0.5 else v
    if tile.rng.random() < 0.2:
        across = (u * 3 + v * int(tile.rng.choice([-4, 4]))) / 5  # rows at an angle
    if tile.rng.random() < 0.15 and radius > 18:
        across = np.sqrt((u - (u0 + u1) / 2) ** 2 + (v - (v0 + v1) / 2) ** 2)
        edge = radius - across
    margin = tile.between(2.2, 3.2)  # leaves at least 3 pixels of grass between two fields
    texture = tile.between(12, 19) * wave(across / tile.between(3, 4.6)) * (edge > margin + 1.5)
    texture += tile.between(2, 6) * tile.blotches()
    texture -= tile.between(4, 14) * (wave(across / tile.between(14, 24)) > 0.8)
    color = ground_color(tile.rng)
    while np.abs(color - tile.ground).max() < 42:  # else the grass around the field would not show
        color = ground_color(tile.rng)
    tile.paint(edge > margin, color, texture)
    tile.field |= edge > margin


def shadow(tile: Tile, things: np.ndarray) -> np.ndarray:
    """Returns the shadow, bool [h w], that `things`, bool [h w], cast."""
    x, y = 8 - tile.sun[0], 8 - tile.sun[1]
    return np.pad(things, 8)[y : y + tile.size, x : x + tile.size]


def plant(tile: Tile, trees: np.ndarray) -> None:
    """Draws trees at the pixels `trees`, bool [h w]. Crowns hide a field; shadows do not."""
    dy, dx = np.mgrid[-5:6, -5:6]
    paint, crowns = np.pad(tile.image, ((5, 5), (5, 5), (0, 0))), np.pad(np.zeros_like(trees), 5)
    for row, column in np.argwhere(trees):
        window, radius = np.s_[row : row + 11, column : column + 11], tile.between(2.2, 4.2)
        crown = dx * dx + dy * dy < radius * radius
        light = -7 * (dx * tile.sun[0] + dy * tile.sun[1]) / radius + tile.rng.integers(-8, 9)
        paint[window][crown] = LEAVES[tile.rng.integers(len(LEAVES))] + light[crown, None]
        crowns[window] |= crown
    crowns = crowns[5:-5, 5:-5]
    tile.image[shadow(tile, crowns)] *= 0.62
    tile.image[crowns] = paint[5:-5, 5:-5][crowns]
    tile.field &= ~crowns


def cover(tile: Tile, distance: np.ndarray, width: float, bank: int, color: np.ndarray, texture: np.ndarray) -> None:
    """Draws water or a road between two banks of grass, and removes fields there.

    - `distance`: float64 [h w], pixels from the middle line.
    - `width`, `bank`: widths in pixels of the water or road, and of each bank.
    - `color`, `texture`: as in `Tile.paint`.
    """
    near = distance < width / 2 + bank
    tile.paint(near & tile.field, tile.ground, 10 * tile.blotches())
    tile.field &= ~near
    tile.paint(distance < width / 2, color, texture)


def water(tile: Tile) -> None:
    """Draws a winding stream, a pond, both or neither, at random."""
    half = tile.size / 2
    if tile.rng.random() < 0.25:
        distance = np.abs(tile.v - tile.between(-0.5, 0.5) * half + 12 * tile.noise(40))
        cover(tile, distance, tile.between(4, 8), 3, WATER[tile.rng.integers(len(WATER))], 5 * tile.noise(9))
    if tile.rng.random() < 0.3:
        u, v = tile.between(-half, half), tile.between(-half, half)
        distance = np.sqrt((tile.u - u) ** 2 + (tile.v - v) ** 2) + 5 * tile.noise(14)
        cover(tile, distance, tile.between(16, 34), 3, WATER[tile.rng.integers(len(WATER))], 4 * tile.noise(12))


def roads(tile: Tile, boxes: list[tuple]) -> None:
    """Draws roads and tracks along sides of parcels, from edge to edge, at random."""
    for width in (tile.between(4, 7), tile.between(2, 3)):
        u0, _, v0, _ = boxes[tile.rng.integers(len(boxes))]
        if tile.rng.random() < 0.6:
            distance = np.abs(tile.u - u0 if tile.rng.random() < 0.5 else tile.v - v0)
            cover(tile, distance, width, 2, ROADS[tile.rng.integers(len(ROADS))], 6 * tile.noise(3))


def farm(tile: Tile, box: tuple) -> None:
    """Draws a yard with buildings: gable roofs with shadows."""
    u, v = tile.between(box[0], box[1]), tile.between(box[2], box[3])
    distance = np.sqrt((tile.u - u) ** 2 + (tile.v - v) ** 2) + 4 * tile.noise(12)
    cover(tile, distance, tile.between(22, 34), 2, GROUND[5] - 14, 9 * tile.blotches())
    for _ in range(int(tile.rng.integers(2, 5))):
        du, dv = tile.u - u - tile.between(-10, 10), tile.v - v - tile.between(-10, 10)
        long, short = tile.between(4, 7), tile.between(2.2, 3.6)
        roof = (np.abs(du) < long) & (np.abs(dv) < short)
        tile.image[shadow(tile, roof)] *= 0.6
        tile.paint(roof, ROOFS[tile.rng.integers(len(ROOFS))], np.where(dv > 0, 12, -14))
        tile.field &= ~roof


def weather(tile: Tile) -> np.ndarray:
    """Renders the picture, uint8 [h w 3] RGB, with cloud shadow, uneven light, white balance, blur and noise."""
    image, last = tile.image, tile.size - 1
    if tile.rng.random() < 0.3:
        cloud = np.clip(3 * tile.noise(56) - 0.3, 0, 1)
        image = image * (1 - tile.between(0.15, 0.35) * cloud)[..., None]
    ramp = np.arange(tile.size) / last - 0.5
    light = tile.between(0.88, 1.12) + tile.between(-0.2, 0.2) * ramp + tile.between(-0.2, 0.2) * ramp[:, None]
    image = image * light[..., None] * (1 + 0.05 * (2 * tile.rng.random(3) - 1))
    image = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    image = (image[:-2] + 6 * image[1:-1] + image[2:]) / 8
    image = (image[:, :-2] + 6 * image[:, 1:-1] + image[:, 2:]) / 8
    grain = tile.rng.integers(-3, 4, image.shape) + tile.rng.integers(-3, 4, image.shape)
    return np.clip(np.rint(image + grain), 0, 255).astype(np.uint8)


def make_tile(
    rng: np.random.Generator, size: int
) -> tuple[UInt8[np.ndarray, "{size} {size} 3"], UInt8[np.ndarray, "{size} {size}"]]:
    """Draws a tile: image, uint8 [size size 3] BGR, and mask, uint8 [size size], 255 in fields, else 0."""
    tile = new_tile(rng, size)
    reach = 0.75 * size + 8  # past the corners of a tile at any rotation
    boxes = split(tile, (-reach, reach, -reach, reach))
    yards, trees = [], np.zeros((size, size), bool)
    share, chance = tile.between(0.5, 0.9), rng.random((size, size))
    for box in boxes:
        kind, (u0, u1, v0, v1) = rng.random(), box
        if kind < share:
            crop(tile, box)
        elif kind < share + (1 - share) * 0.65:
            tile.paint(inside(tile, box, 1), ground_color(rng), tile.between(9, 17) * tile.blotches())  # meadow, fallow
            yards.append(box)
        else:
            trees |= inside(tile, box, 0) & (chance < 1 / 14)
        if rng.random() < 0.2:
            hedge = [(u0 - 1, u0 + 1, v0, v1), (u0, u1, v0 - 1, v0 + 1)][rng.integers(2)]
            trees |= inside(tile, hedge, 0) & (chance < 1 / 9)
    water(tile)
    roads(tile, boxes)
    if yards and rng.random() < 0.5:
        farm(tile, yards[0])
    plant(tile, trees)
    return np.ascontiguousarray(weather(tile)[..., ::-1]), tile.field.astype(np.uint8) * 255
