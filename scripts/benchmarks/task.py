"""The network and the batch of both sides."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
    """A U-Net with transposed convolutions, 3 channels in, 2 classes out, and square uint8 images."""

    base: int
    """Channels at full resolution, twice as many at each of the levels below: milesial's network has 64."""
    batch: int
    side: int
    precision: str
    """"f32", in which a GPU may use TF32 on both sides, or "bf16": autocast, parameters in float32."""
    conv_bias: bool = True
    levels: int = 5
    learning_rate: float = 1e-3

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level."""
        return tuple(self.base << level for level in range(self.levels))

    def made_up_batch(self) -> dict[str, np.ndarray]:
        """As the pipeline gives them: noise, with a mask that follows from it; the same on both sides."""
        image = np.random.default_rng(0).integers(0, 256, (self.batch, self.side, self.side, 3), np.uint8)
        return {"image": image, "mask": image[..., 0] // 128, "valid": np.ones(self.batch, bool)}
