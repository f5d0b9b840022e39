"""Merges small regions of a class map into their neighbors, with one block of the map in memory."""

import numpy as np

from jaxseg.geo.regions import SIDE, Regions, components


def merge_small(regions: Regions, least: int, alike: bool = True, side: int = SIDE) -> Regions:
    """Merges regions of fewer than `least` pixels into the largest region that touches them.

    - `regions`: regions
    - `least`: pixels; a smaller region that touches no other is dropped
    - `alike`: regions of one class that come to touch become one
    - `side`: side of the blocks in which the map is read

    A merged region takes class and probability of the larger one.
    """
    small = regions.pixels < least
    pairs = _touching(regions, small, side)
    root, kept = np.arange(len(small)), regions.pixels * 1.0
    sums, pixels, classes = regions.probability * kept, regions.pixels.copy(), regions.classes
    while True:
        pairs = np.unique(np.sort(root[pairs], -1), axis=0)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        ways = np.concatenate([pairs, pairs[:, ::-1]])
        ways = ways[pixels[ways[:, 0]] < least]
        rank = np.lexsort((-np.arange(len(pixels)), pixels)).argsort()  # by size, then the earlier
        ways = ways[rank[ways[:, 1]] > rank[ways[:, 0]]]
        if not len(ways):
            break
        ways = ways[np.lexsort((rank[ways[:, 1]], ways[:, 0]))]
        target = np.arange(len(root))
        target[ways[:, 0]] = ways[:, 1]  # NumPy keeps the last target, the largest
        while (target[target] != target).any():
            target = target[target]
        gone = target != np.arange(len(target))
        sums[gone] = kept[gone] = 0
        if alike:
            near = target[pairs]
            _, group = components(near[classes[near[:, 0]] == classes[near[:, 1]]], len(target))
            earliest = np.full(len(target), len(target))
            np.minimum.at(earliest, group, np.where(gone, len(target), np.arange(len(target))))
            target = earliest[group][target]
        pixels, sums, kept = (np.bincount(target, values, len(root)) for values in (pixels, sums, kept))
        root = target[root]
    stays = (root == np.arange(len(root))) & (pixels >= least)
    new = np.where(stays, np.cumsum(stays), 0)
    number = new[root]
    probability = np.divide(sums, kept, out=np.zeros(len(sums)), where=kept > 0)
    few = [
        np.concatenate([values[:1] * 0, values[stays]]) for values in (classes, pixels.astype(np.int64), probability)
    ]
    return Regions(regions.path, number[regions.numbers], *few)


def _touching(regions: Regions, small: np.ndarray, side: int) -> np.ndarray:
    """Returns pairs [n 2] of regions that share an edge of a pixel; one of them is small."""
    found, above = [np.zeros((0, 2), np.int64)], None
    for (row, column), numbers in regions.blocks(side):
        if column == 0:
            upper, above, left = above, [], numbers[:, :0]
        block = np.concatenate([left, numbers], 1)
        if row:
            edge = np.stack([upper[column // side], numbers[0]], -1)
            found.append(_pairs(edge, small))
        found.append(_pairs(np.stack([block[:, :-1].ravel(), block[:, 1:].ravel()], -1), small))
        found.append(_pairs(np.stack([numbers[:-1].ravel(), numbers[1:].ravel()], -1), small))
        above.append(numbers[-1])
        left = numbers[:, -1:]
    return np.unique(np.concatenate(found), axis=0)


def _pairs(pairs: np.ndarray, small: np.ndarray) -> np.ndarray:
    a, b = pairs.T
    pairs = pairs[(a != b) & (a > 0) & (b > 0)]
    return np.unique(np.sort(pairs[small[pairs].any(-1)], -1), axis=0)
