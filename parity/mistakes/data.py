"""Tiles read, ordered or scaled wrongly."""

import dataclasses

import cv2
import jax.numpy as jnp
import numpy as np

from jaxseg.base.errors import DataError
from jaxseg.data.feed import pipeline
from jaxseg.data.find import folders
from jaxseg.data.read import samples
from jaxseg.doctor import survey
from jaxseg.learn import step
from parity.mistakes import mistake


def other_image(change):
    """Changes an image after it was read."""

    def wrap(right):
        def read(path, reading=samples.ARTICLE_READING):
            image, has_data = right(path, reading)
            return change(image), has_data

        return read

    return wrap


def pil_gray(right):
    """Converts to gray by Pillow's formula, in 16 bits."""

    def gray(path):
        b, g, r = np.moveaxis(samples.read_image(path).astype(np.uint32), -1, 0)
        return ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16).astype(np.uint8)

    return gray


def drop_last(right):
    """Drops the short last batch, as `drop_last=True` does."""

    def epoch(self, epoch=0, start=0):
        whole = len(self.pairs) // self.batch_size
        for i, batch in enumerate(right(self, epoch, start)):
            if start + i < whole:
                yield batch

    return epoch


def other_mask(right):
    """Takes masks from the next pair."""

    def match(images, masks, settings, only=None):
        found = right(images, masks, settings, only)
        pairs = zip(found.pairs, found.pairs[1:] + found.pairs[:1])
        return dataclasses.replace(found, pairs=tuple(samples.Pair(pair.image, after.mask) for pair, after in pairs))

    return match


def one_ulp(right):
    """Divides on the device, where XLA multiplies by 1/255."""
    return lambda image, *_: jnp.asarray(image).astype(jnp.float32) * jnp.float32(1 / 255)


def truncated_gray(right):
    """Gray by float weights, cut off."""

    def gray(path):
        b, g, r = np.moveaxis(samples.read_image(path).astype(np.float32), -1, 0)
        return (np.float32(0.299) * r + np.float32(0.587) * g + np.float32(0.114) * b).astype(np.uint8)

    return gray


def white_is_254(right):
    """A survey that counts 255 as 254."""

    def look(*args, **how):
        facts = right(*args, **how)
        if facts.mask is None:
            return facts
        values = tuple(value - 1 if value % 256 == 255 else value for value in facts.mask.values)
        return dataclasses.replace(facts, mask=dataclasses.replace(facts.mask, values=values))

    return look


def nameless(right):
    """Errors that do not name the file."""

    def read(*args):
        try:
            return right(*args)
        except DataError:
            raise DataError("Cannot read the data.", ["a file is damaged"]) from None

    return read


MISTAKES = [
    mistake("images in RGB", samples, "read_tile", other_image(lambda image: image[..., ::-1])),
    mistake("divided by 255 as a product", step, "normalize", one_ulp),
    mistake("divided by 256", step, "normalize", lambda right: lambda image, *_: right(image) * jnp.float32(255 / 256)),
    mistake("gray by Pillow's formula", samples, "read_gray", pil_gray),
    mistake(
        "mask above 0",
        samples,
        "read_mask",
        lambda right: lambda path, reading=None: (samples.read_gray(path) > 0).astype(np.uint8),
    ),
    mistake(
        "mask from 128 on",
        samples,
        "read_mask",
        lambda right: lambda path, reading=None: (samples.read_gray(path) >= 128).astype(np.uint8),
    ),
    mistake(
        "mask by its first channel",
        samples,
        "read_mask",
        lambda right: lambda path, reading=None: samples.read_image(path)[..., 0] // 255,
    ),
    mistake("last batch dropped", pipeline.Pipeline, "epoch", drop_last),
    mistake(
        "the same order every epoch",
        pipeline.Pipeline,
        "order",
        lambda right: lambda self, epoch: right(self, 0),
    ),
    mistake(
        "drawn with replacement",
        pipeline.Pipeline,
        "order",
        lambda right: (
            lambda self, epoch: (
                np.random.default_rng(epoch).integers(0, len(self.pairs), len(self.pairs))
                if self.shuffle
                else right(self, epoch)
            )
        ),
    ),
    mistake("gray cut off", samples, "read_gray", truncated_gray),
    mistake("OpenCV's gray of RGB", cv2, "cvtColor", lambda right: lambda x, code: right(x[..., ::-1].copy(), code)),
    mistake("255 counted as 254", survey, "look", white_is_254),
    mistake("errors without the file's name", pipeline, "read_sample", nameless),
    mistake("masks of the next tile", folders, "match", other_mask),
    mistake(
        "images blurred by a resize there and back",
        samples,
        "read_tile",
        other_image(lambda image: cv2.resize(cv2.resize(image, None, fx=2, fy=2), image.shape[1::-1])),
    ),
]
