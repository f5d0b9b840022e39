"""The same network, data and weights on both sides: what the checks of whole networks start from."""

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
    """jaxseg's U-Net and the reference's with the reference's weights, in `dtype`: "float32", "float64" or "bfloat16".

    The weights do not depend on `dtype`. In bfloat16 they stay float32 on both sides, and only jaxseg's network knows
    the type: PyTorch's users say it around the call (see `passes.theirs`).
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
    """Made-up batches as the pipeline gives them, each of `max(sizes)` samples of which `sizes[i]` are valid.

    Smooth random images and masks that follow from them, so that there is something to learn.
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
    """The valid samples of a batch as the reference's loader gives them: images [b c h w], masks int64 [b h w]."""
    valid = batch["valid"]
    images = torch.stack([to_tensor(image) for image in batch["image"][valid]])
    return images.to(getattr(torch, dtype)), torch.from_numpy(batch["mask"][valid].astype(np.int64))


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copies of tensors as NumPy arrays; counters of batches, which matter to no result, are left out."""
    return {name: array(tensor) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def array(tensor: torch.Tensor) -> np.ndarray:
    """A copy as a NumPy array, which for bfloat16 is float32."""
    tensor = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
    return tensor.cpu().contiguous().numpy().copy()


def nchw(array) -> np.ndarray:
    """[b h w c] -> [b c h w]."""
    return np.asarray(array).transpose(0, 3, 1, 2)
