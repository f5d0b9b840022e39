"""Whole networks with equal weights on both sides, and batches for both."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxseg.learn.losses import IGNORE_INDEX
from jaxseg.nn.torch_weights import from_torch
from jaxseg.nn.unet import UNet
from parity.reference.dataset import to_tensor
from parity.reference.initialization import init_weights
from parity.reference.unet import UNet as ReferenceUNet

Batch = dict[str, np.ndarray]


def networks(seed: int, dtype: str, widths: tuple[int, ...], **options) -> tuple[UNet, ReferenceUNet]:
    """jaxseg's U-Net and the reference's, both with the weights that the reference draws from `seed`.

    dtype: "float32", "float64" or "bfloat16"; does not change which weights are drawn.
    widths: channels at each level.
    options: of both networks, such as `upsample` and `conv_bias`.

    In bfloat16 the weights stay float32 on both sides. Only jaxseg's network has that dtype; PyTorch gets it from
    autocast around the call (see `passes.theirs`).
    """
    torch.manual_seed(seed)
    kept = "float32" if dtype == "bfloat16" else dtype
    reference = ReferenceUNet(widths=widths, **options).apply(init_weights).to(getattr(torch, kept))
    kinds = {"dtype": getattr(jnp, dtype), "param_dtype": getattr(jnp, kept)}
    net = nnx.eval_shape(lambda: UNet(widths, **options, **kinds, rngs=nnx.Rngs(0)))  # drawing weights would be slow
    nnx.update(net, jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), nnx.state(net)))
    from_torch(net, reference.state_dict())
    return net, reference


def batches(seed: int, sizes: list[int], height: int, width: int) -> list[Batch]:
    """Made-up batches in the pipeline's form: `max(sizes)` samples each, the first `sizes[i]` of batch i valid.

    Images are smooth and random, and masks follow from them, so a network can learn something.
    """
    rng, full = np.random.default_rng(seed), max(sizes)
    out = []
    for size in sizes:
        noise = rng.random((full, height + 6, width + 6, 3))
        smooth = sum(noise[:, i : i + height, j : j + width] for i in range(7) for j in range(7)) / 49
        image = np.clip((smooth - 0.5) * 1200 + 128 + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        mask = (smooth[..., 0] + smooth[..., 1] > 1).astype(np.uint8)
        valid = np.arange(full) < size
        image[~valid], mask[~valid] = 0, IGNORE_INDEX
        out.append({"image": image, "mask": mask, "valid": valid})
    return out


def for_torch(batch: Batch, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Valid samples in the form of the reference's loader: images `dtype` [b c h w], masks int64 [b h w]."""
    valid = batch["valid"]
    images = torch.stack([to_tensor(image) for image in batch["image"][valid]])
    return images.to(getattr(torch, dtype)), torch.from_numpy(batch["mask"][valid].astype(np.int64))


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copies of tensors as NumPy arrays, without the counters `num_batches_tracked`, which change no result."""
    return {name: array(tensor) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def array(tensor: torch.Tensor) -> np.ndarray:
    """Copy of a tensor as a NumPy array; bfloat16 becomes float32."""
    tensor = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
    return tensor.cpu().contiguous().numpy().copy()


def nchw(array) -> np.ndarray:
    """Transposes [b h w c] to [b c h w]."""
    return np.asarray(array).transpose(0, 3, 1, 2)
