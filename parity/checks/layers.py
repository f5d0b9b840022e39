"""The layers question: does every layer compute what PyTorch's does, forwards and backwards, ties and zeros included?

Gates:

- float64: 1e-14 for each output, gradient and statistic, relative in the l2 norm. The two sides round in different
  orders, which never made more than 2e-15. The mildest mistake looked for, eps 1e-6 instead of 1e-5, makes 3e-6.
- ConvBlock: 1e-13, because its gradients cross two BatchNorms (5e-15 in 50 seeds).
- BatchNorm with a mean of r standard deviations: r times the gate, because both sides lose digits.
- Layers that only choose among their inputs (ReLU, pooling, nearest): equality.
- float32: jaxseg's distance from float64 is at most 3 times that of PyTorch's float32, or of half an ulp if that is
  larger.
- Share of dropped elements: correct code fails in one run in a million.

Rows of Flax's and JAX's own layers show which expression equals PyTorch's.

Not seen: layers in combination (see model), statistics of several devices, NaN and infinities, `momentum=None`.
"""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from scipy import stats

from parity.checks import batch_norm, convolution, convolution_forms, edges, normalization
from parity.judge import compare, laws
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.twins import layer_pairs as pairs
from parity.twins.layer_pairs import Case, Results, Sides, normal
from parity.twins.quickly import QUICKLY

QUESTION = "layers"
GATE = 1e-14
FALSE_ALARMS = 1e-6  # chance that a run fails on correct code
RATES = (0.1, 0.5)  # dropout rates


def run(settings: Settings) -> Answer:
    """Answers the layers question.

    Evidence:

    - "batch_norm": [{"ratio", "what", "jaxseg", "pytorch"}], relative l2 distances of float32 from float64 by mean/std
    - "conv": {"elements", "differing", "ulps"} of a 3x3 convolution in float32, jaxseg against PyTorch
    """
    rng, quick = np.random.default_rng(settings.seed), settings.quick
    with jax.enable_x64(True):
        rows = [
            *convolution.float64_rows(rng, quick),
            *batch_norm.float64_rows(rng, quick),
            *convolution_forms.float64_rows(rng),
            *edges.float64_rows(rng),
            *activations(rng),
            *pooling(rng, quick),
            *resizing(rng, quick),
            *dropout(rng, settings.seed),
        ]
    with jax.enable_x64(False):
        conv_row, bits = convolution.float32_row(rng)
        norm_rows, distances = batch_norm.float32_rows(rng, quick)
        image_rows = normalization.float32_rows(np.random.default_rng(settings.seed))
        rows += [conv_row, *norm_rows, *image_rows]
    return Answer(QUESTION, tuple(rows), {"batch_norm": distances, "conv": bits})


def row(name: str, sides: Sides, note: str = "") -> Row:
    """Row for all results of a layer; the figure is that of the worst array."""
    return compare.close(QUESTION, name, *sides, GATE, each=True, note=note)


def exact_row(name: str, sides: Sides, note: str = "") -> Row:
    """Row for results that must be equal; -0 equals 0."""
    return compare.close(QUESTION, name, *sides, 0, measure=compare.max_abs, each=True, note=note)


# ReLU, pooling --------------------------------------------------------------------------------------------------------


def activations(rng: np.random.Generator) -> Iterable[Row]:
    """Rows for ReLU alone, and in a ConvBlock where two channels are 0 before the last ReLU."""
    arguments = {"x": normal(rng, 2, 3, 6, 5)}
    for i, inputs in ((1, 3), (2, 4)):
        arguments |= {f"kernel{i}": normal(rng, 4, inputs, 3, 3), f"bias{i}": normal(rng, 4)}
        arguments |= {f"scale{i}": rng.uniform(0.5, 2, 4), f"shift{i}": normal(rng, 4)}
    arguments["scale2"][2:] = arguments["shift2"][2:] = 0
    tiny = float(np.finfo(np.float32).tiny)
    sides = pairs.both(
        {
            "ConvBlock": {"": Case(pairs.conv_block, pairs.torch_conv_block, arguments)},
            "ReLU": {"": Case(pairs.relu, F.relu, {"x": np.array([0.0, -0.0, 1.0, -1.0, tiny, -tiny, 1e30, -1e30])})},
            "denormal": {"": Case(pairs.relu, F.relu, {"x": np.array([tiny / 2, -tiny / 2, tiny / 1000], np.float32)})},
            "GELU": {"": Case(partial(jax.nn.gelu, approximate=False), F.gelu, {"x": normal(rng, 20)})},
        }
    )
    block = sides["ConvBlock"]
    whole = pairs.only(block, lambda what: not what.startswith("d bias"))
    yield compare.close(QUESTION, "ConvBlock", *whole, 10 * GATE, each=True, note="without the gradients of its biases")
    noise = pairs.only(block, lambda what: what.startswith("d bias"))
    rows = [
        compare.known_zero(QUESTION, side, zero, of, GATE)
        for side, zero, of in zip(("jaxseg", "PyTorch"), noise, whole, strict=True)
    ]
    note = "zero in exact arithmetic, on both sides; relative to the whole gradient"
    yield compare.worst_of(QUESTION, "ConvBlock: biases before BatchNorm", rows, note=note)
    last = pairs.only(block, lambda what: what in ("y", "d scale2", "d shift2"))
    yield exact_row("ReLU in ConvBlock, every input 0", pairs.channels(last, slice(2, 4)), "no gradient")
    yield exact_row("ReLU at both zeros", sides["ReLU"])
    yield denormals(sides["denormal"], tiny)
    yield row("GELU with approximate=False", sides["GELU"], "JAX approximates by default, PyTorch does not")


def denormals(sides: Sides, tiny: float) -> Row:
    """Row for denormals: XLA may flush them to 0, where the slope is 0; PyTorch keeps them."""
    found, expected = (side[": y"] for side in sides)
    lost = int((found != expected).sum())
    note = f"XLA flushes {lost} of {found.size} to 0, with slope 0" if lost else "kept"
    return compare.close(QUESTION, "ReLU of denormals", found, expected, tiny, measure=compare.max_abs, note=note)


def pooling(rng: np.random.Generator, quick: bool) -> Iterable[Row]:
    """Rows for the values of poolings, and for the pixels that get the gradient."""
    sizes = [(7, 8)] if quick else [(2, 2), (6, 8), (7, 5), (3, 32), (33, 31)]
    rows = {
        "max-pool, odd and even sizes": (lambda h, w: normal(rng, 4, 3, h, w), ""),
        "max-pool of negative values": (lambda h, w: -1 - np.abs(normal(rng, 4, 3, h, w)), ""),
        "max-pool, all equal": (lambda h, w: np.full((4, 3, h, w), -0.5), "a tie in every window"),
        "max-pool of quantized values": (
            lambda h, w: np.round(normal(rng, 4, 3, h, w)),
            "a tie in half of the windows",
        ),
    }
    blocks = {f"{h}x{w}": np.concatenate([make(h, w) for make, _ in rows.values()], axis=1) for h, w in sizes}
    pool = partial(F.max_pool2d, kernel_size=2)
    x = np.round(normal(rng, 4, 3, 9, 8))
    groups = {
        "max-pool": {name: Case(pairs.max_pool, pool, {"x": block}) for name, block in blocks.items()},
        "max-pool of ReLU": {
            "": Case(lambda x: pairs.max_pool(pairs.relu(x)), lambda x: pool(F.relu(x)), {"x": normal(rng, 4, 3, 7, 8)})
        },
        "nnx.max_pool of quantized values": {
            "2x2": Case(partial(pairs.flax_pool, nnx.max_pool, size=2, stride=2, padding=0), pool, {"x": x}),
            "3x3 stride 2 padding 1": Case(
                partial(pairs.flax_pool, nnx.max_pool, size=3, stride=2, padding=1),
                partial(F.max_pool2d, kernel_size=3, stride=2, padding=1),
                {"x": x},
            ),
        },
        "nnx.avg_pool with padding": {
            "3x3 stride 2 padding 1": Case(
                partial(pairs.flax_pool, nnx.avg_pool, size=3, stride=2, padding=1),
                partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1),
                {"x": x},
            )
        },
    }
    sides = pairs.both(groups)
    for number, (name, (_, note)) in enumerate(rows.items()):
        yield exact_row(name, pairs.channels(sides["max-pool"], slice(3 * number, 3 * number + 3)), note)
    yield exact_row(
        "max-pool of ReLU", sides["max-pool of ReLU"], "in a window of zeros ReLU stops the gradient anyway"
    )
    yield row("nnx.max_pool of quantized values", sides["nnx.max_pool of quantized values"])
    yield row("nnx.avg_pool with padding", sides["nnx.avg_pool with padding"], "both sides count the padding")


# Resizing -------------------------------------------------------------------------------------------------------------


def resizing(rng: np.random.Generator, quick: bool) -> Iterable[Row]:
    """Rows for the network's upsampling, and for `jax.image.resize`."""
    sizes = [(4, 7)] if quick else [(1, 1), (1, 5), (4, 7), (2, 3), (33, 32)]
    up, down = ([(16, 20)], [(5, 4)]) if quick else ([(16, 18), (24, 27), (11, 20)], [(4, 5), (3, 7), (1, 1)])
    theirs = partial(F.interpolate, scale_factor=2, mode="bilinear", align_corners=True)
    x = normal(rng, 2, 3, 8, 9)

    def cases(to: list[tuple[int, int]], method: str, mode: str, antialias: bool = False) -> dict[str, Case]:
        ours = partial(pairs.resize, method=method, antialias=antialias)
        theirs = partial(F.interpolate, mode=mode, antialias=antialias)
        return {f"to {h}x{w}": Case(partial(ours, size=(h, w)), partial(theirs, size=(h, w)), {"x": x}) for h, w in to}

    sides = pairs.both(
        {
            "bilinear up, align_corners=True": {
                f"{h}x{w}": Case(pairs.upsample_bilinear, theirs, {"x": normal(rng, 2, 3, h, w)}) for h, w in sizes
            },
            "jax.image.resize, bilinear up": cases(up, "bilinear", "bilinear"),
            "jax.image.resize, bilinear down": cases(down, "bilinear", "bilinear"),
            "jax.image.resize, bilinear down, antialias": cases(down, "bilinear", "bilinear", antialias=True),
            "jax.image.resize, nearest": cases(up + down, "nearest", "nearest-exact"),
        }
    )
    h, w = down[0]
    floor = F.interpolate(torch.tensor(x), size=(h, w), mode="nearest").numpy()
    off = np.abs(sides["jax.image.resize, nearest"][0][f"to {h}x{w}: y"] - floor).max()
    notes = {
        "jax.image.resize, bilinear up": "align_corners=False",
        "jax.image.resize, bilinear down": "antialias=False on both sides",
        "jax.image.resize, bilinear down, antialias": "JAX's default, not PyTorch's",
        "jax.image.resize, nearest": f"PyTorch's nearest-exact; its 'nearest' is {off:.1f} off when scaling down",
    }
    return [row(name, side, notes.get(name, "")) for name, side in sides.items()]


# Dropout --------------------------------------------------------------------------------------------------------------


def dropout(rng: np.random.Generator, seed: int) -> Iterable[Row]:
    """Rows for dropout: scale of the kept elements and share of the dropped ones, which each side draws itself."""
    x = np.ones((100, 20, 5, 4))
    found, expected = jax_dropout(x, seed), torch_dropout(x, seed)
    scales = tuple({name: np.unique(y[y != 0]) for name, y in side.items()} for side in (found, expected))
    yield compare.close(
        QUESTION, "dropout: scale", *scales, 1e-15, each=True, note="1 / (1 - p), forwards and backwards"
    )
    results = {
        f"{side}, {name}": y for side, of in (("jaxseg", found), ("PyTorch", expected)) for name, y in of.items()
    }
    forwards = {name: y for name, y in results.items() if "gradient" not in name}
    backwards = {name.removesuffix(" gradient"): y for name, y in results.items() if name not in forwards}
    yield exact_row("dropout: gradient", (backwards, forwards), "dropped forwards is dropped backwards")
    channels = {name: y for name, y in forwards.items() if "channels" in name}
    firsts = {name: np.broadcast_to(y[:, :, :1, :1], y.shape) for name, y in channels.items()}
    yield exact_row("dropout of whole channels", (channels, firsts), "broadcast_dims=(1, 2) is Dropout2d")
    shares = []
    for name, y in forwards.items():
        drawn, rate = y[:, :, 0, 0] if name in channels else y, float(name.split()[-1])
        fallen, alpha = int((drawn == 0).sum()), FALSE_ALARMS / len(forwards)
        p, worst = stats.binomtest(fallen, drawn.size, rate).pvalue, f"{fallen} of {drawn.size}"
        shares.append(laws.chance(QUESTION, name, p, alpha, worst=worst))
    note = f"{len(shares)} binomial tests; false alarms in {FALSE_ALARMS:.0e} of runs"
    yield compare.worst_of(QUESTION, "dropout: share dropped", shares, note=note)
    x = normal(rng, 2, 3, 4, 5)
    kept = {
        "jaxseg": np.asarray(nnx.Dropout(0.5, deterministic=True)(jnp.asarray(x))),
        "PyTorch": torch.nn.Dropout(0.5).eval()(torch.tensor(x)).numpy(),
    }
    yield compare.equal_bytes(QUESTION, "dropout in evaluation", kept, dict.fromkeys(kept, x), note="keeps everything")


def jax_dropout(x: np.ndarray, seed: int) -> Results:
    """Outputs and gradients of `nnx.Dropout` for `x` [b c h w] at all RATES, by elements and by channels."""

    def drop(x, rate: float, dims: tuple[int, ...], seed: int):
        return nnx.Dropout(rate, broadcast_dims=dims)(x, rngs=jax.random.key(seed))

    def drop_all(x):
        out = {}
        for i, (name, rate, dims) in enumerate(
            (f"{name} {rate}", rate, dims) for name, dims in kinds for rate in RATES
        ):
            y, pull = jax.vjp(partial(drop, rate=rate, dims=dims, seed=100 * seed + i), x)
            out |= {name: y, f"{name} gradient": pull(jnp.ones_like(y))[0]}
        return out

    kinds = (("rate", ()), ("channels", (1, 2)))
    found = jax.jit(drop_all, compiler_options=QUICKLY)(x.transpose(0, 2, 3, 1))
    return {name: pairs.nchw(np.asarray(y)) for name, y in found.items()}


def torch_dropout(x: np.ndarray, seed: int) -> Results:
    """Outputs and gradients of `torch.nn.Dropout` and `torch.nn.Dropout2d`, as from `jax_dropout`."""
    out = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for rate in RATES:
            for name, layer in (
                (f"rate {rate}", torch.nn.Dropout(rate)),
                (f"channels {rate}", torch.nn.Dropout2d(rate)),
            ):
                tensor = torch.tensor(x, requires_grad=True)
                y = layer(tensor)
                y.sum().backward()
                out |= {name: y.detach().numpy(), f"{name} gradient": tensor.grad.numpy()}
    return out
