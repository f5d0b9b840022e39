"""Notes every key from which JAX draws: `noted` keys are threefry keys that tell when they are used."""

import dataclasses
import functools

import jax
import numpy as np
from jax.extend import random

Key = tuple[int, ...]


@dataclasses.dataclass
class Notes:
    """Uses of keys, in any order."""

    drawn: list[tuple[Key, tuple[int, ...]]] = dataclasses.field(default_factory=list)
    """Keys from which numbers were drawn, with their shape."""
    derived: list[Key] = dataclasses.field(default_factory=list)
    """Keys that were split, or into which a number was folded."""


NOTES = Notes()


def noted() -> Notes:
    """Forgets earlier notes, and returns those to come. Read them after `jax.effects_barrier()`."""
    NOTES.drawn.clear()
    NOTES.derived.clear()
    return NOTES


def _key(data: np.ndarray) -> Key:
    return tuple(np.asarray(data).ravel().tolist())


@functools.cache
def impl():
    """Implementation of JAX's default generator that notes uses, for `jax.random.key(seed, impl=impl())`."""
    right = random.threefry_prng_impl

    def split(key, shape):
        jax.debug.callback(lambda data: NOTES.derived.append(_key(data)), key)
        return right.split(key, shape)

    def fold_in(key, data):
        jax.debug.callback(lambda data: NOTES.derived.append(_key(data)), key)
        return right.fold_in(key, data)

    def random_bits(key, width, shape):
        jax.debug.callback(lambda data: NOTES.drawn.append((_key(data), tuple(shape))), key)
        return right.random_bits(key, width, shape)

    how = {"key_shape": right.key_shape, "seed": right.seed, "split": split}
    return random.define_prng_impl(**how, random_bits=random_bits, fold_in=fold_in, name="noted", tag="noted")
