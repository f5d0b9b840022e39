"""Is the network the reference's: every activation, the loss, every gradient, running statistics, evaluation?

With the reference's weights and one batch, in float64, where the two stacks differ by 1e-16 to 1e-13 of roundings
(most in the deepest layers) and the smallest mistake that was ever injected, eps 1e-6 for 1e-5, by 3e-6. The gate is
1e-12, tensor by tensor, in the l2 norm relative to the reference's tensor. The batch is short (3 of 4 samples), so
padding is under test as well; sizes are odd, so pooling and padding of skips are too.

Gradients of biases that a BatchNorm follows are zero in exact arithmetic. Both sides return noise there, which is
compared with the norm of the whole gradient instead. Not seen: what continuous data do not meet, such as ties in
pooling (tests/test_model.py has them).
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

import jaxseg.model
from jaxseg.convert import to_torch
from jaxseg.step import loss_fn, normalize
from parity import compare, pairs
from parity.answer import Answer, Settings
from parity.compare import Row

QUESTION = "model"
GATE = 1e-12
CASES = {
    "transposed": {"widths": (8, 16, 32, 64, 128)},
    "bilinear": {"widths": (8, 16, 32, 64, 128), "upsample": "bilinear"},
    "no conv bias": {"widths": (16, 32, 64), "conv_bias": False},
}
LAYERS = (
    torch.nn.Conv2d,
    torch.nn.BatchNorm2d,
    torch.nn.ReLU,
    torch.nn.MaxPool2d,
    torch.nn.ConvTranspose2d,
    torch.nn.Upsample,
)


def run(settings: Settings) -> Answer:
    """The model question."""
    rows = []
    with jax.enable_x64(True):
        for name, options in CASES.items():
            rows += case_rows(name, settings.seed, options)
    return Answer(QUESTION, tuple(rows))


def case_rows(name: str, seed: int, options: dict) -> list[Row]:
    """One network, forwards and backwards."""
    net, reference = pairs.networks(seed, "float64", **options)
    (batch,) = pairs.batches(seed, [3], 69, 54)
    padded = {key: np.concatenate([value, value[:1]]) for key, value in batch.items()}
    padded["valid"][-1], padded["mask"][-1] = False, 255
    images, masks = pairs.for_torch(padded, "float64")

    # a copy, because a forward pass in training moves the running statistics
    found_activations = activations(nnx.clone(net), padded)
    expected_activations, logits = reference_activations(reference, images)
    (loss, found_logits), grads = nnx.jit(nnx.value_and_grad(loss_fn, has_aux=True))(net, padded)
    expected_loss = F.cross_entropy(logits, masks)
    expected_loss.backward()
    found_grads = to_torch(grads)
    expected_grads = pairs.arrays({key: p.grad for key, p in reference.named_parameters()})
    zero = [key for key in expected_grads if key.endswith(("double_conv.0.bias", "double_conv.3.bias"))]
    found_zero, expected_zero = ({key: g.pop(key) for key in zero} for g in (found_grads, expected_grads))
    statistics = pairs.arrays(dict(reference.named_buffers()))
    found_statistics = {key: value for key, value in to_torch(net).items() if key in statistics}

    evaluated = nnx.view(net, use_running_average=True)(normalize(padded["image"][:3]))
    with torch.no_grad():
        expected_evaluated = reference.eval()(images)

    def row(what: str, found, expected, note: str = "", each: bool = True) -> Row:
        return compare.close(QUESTION, f"{name}: {what}", found, expected, GATE, each=each, note=note)

    rows = [
        row(f"{len(expected_activations)} activations", found_activations, expected_activations),
        row("logits", pairs.nchw(found_logits)[:3], logits.detach().numpy()),
        row("loss", np.asarray(loss), expected_loss.detach().numpy()),
        row(f"{len(expected_grads)} gradients", found_grads, expected_grads),
        row(f"{len(statistics)} running statistics", found_statistics, statistics),
        row("evaluation logits", pairs.nchw(evaluated), expected_evaluated.numpy()),
    ]
    if zero:
        note = "zero in exact arithmetic; relative to the whole gradient"
        for side, noise, whole in (("jaxseg", found_zero, found_grads), ("PyTorch", expected_zero, expected_grads)):
            rows.append(
                compare.known_zero(
                    QUESTION, f"{name}: {len(zero)} biases before BatchNorm, {side}", noise, whole, GATE, note
                )
            )
    return rows


def activations(net: jaxseg.model.UNet, batch: pairs.Batch) -> dict[str, np.ndarray]:
    """What every layer of jaxseg's network puts out for the valid samples, in the order of computation, [b c h w]."""
    with recording() as found:
        net(normalize(batch["image"]), batch["valid"])
    return {f"{i}": pairs.nchw(x)[batch["valid"]] for i, x in enumerate(found)}


@contextlib.contextmanager
def recording() -> Iterator[list[jax.Array]]:
    """Notes the outputs of all layers called inside; not under jit."""
    found = []

    def note(function):
        def noted(*args, **kwargs):
            found.append(function(*args, **kwargs))
            return found[-1]

        return noted

    layers = [
        (nnx.Conv, "__call__"),
        (jaxseg.model.BatchNorm, "__call__"),
        (jaxseg.model.UpConv, "__call__"),
        (jaxseg.model, "upsample_bilinear"),
        (jaxseg.model, "max_pool"),
        (jax.nn, "relu"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, attribute in layers:
            stack.enter_context(mock.patch.object(owner, attribute, note(getattr(owner, attribute))))
        yield found


def reference_activations(
    reference: torch.nn.Module, images: torch.Tensor
) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    """The same of the reference, and its logits with their graph."""
    found = []
    hooks = [
        module.register_forward_hook(lambda _, __, out: found.append(out.detach().numpy().copy()))
        for module in reference.modules()
        if isinstance(module, LAYERS)
    ]
    logits = reference(images)
    for hook in hooks:
        hook.remove()
    return {f"{i}": x for i, x in enumerate(found)}, logits
