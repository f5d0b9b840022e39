"""PyTorch's contenders, for `workers.Worker`: the parity suite's U-Net, set up as fast as PyTorch's users know to.

On a GPU: TF32 for float32, cudnn.benchmark, and steps that do not wait for the host. In bfloat16 under autocast.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.machine import threads
from benchmarks.sources import Source
from benchmarks.task import Task
from benchmarks.workers import peak_mib, timed
from jaxseg.base.config import IGNORE_INDEX
from parity.reference.unet import UNet


def choose_device(tuned: bool = True) -> torch.device:
    """The GPU if there is one; sets what is global in PyTorch. Not `tuned`: cuDNN does not try its kernels out."""
    torch.set_num_threads(threads())
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.benchmark = tuned
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class Network:
    """The U-Net with its step, on the device.

    `layout`: "contiguous" or "channels_last". `fused`: Adam in one kernel. `compiled`: a mode of torch.compile, which
    is given everything from the uint8 images to the loss; None for eager. `tuned`: see `choose_device`.
    """

    def __init__(
        self,
        task: Task,
        weights: Path | None = None,
        layout: str = "channels_last",
        fused: bool = True,
        compiled: str | None = None,
        tuned: bool = True,
    ):
        self.device, self._task, self._compiled = choose_device(tuned), task, compiled
        self._layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
        self._model = UNet(widths=task.widths, conv_bias=task.conv_bias)
        if weights is not None:
            with np.load(weights) as arrays:
                self._model.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()}, strict=False)
        self._model.to(self.device, memory_format=self._layout).train()
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=task.learning_rate, fused=fused)
        self._ask = torch.compile(self._loss, mode=compiled, dynamic=False) if compiled else self._loss

    def put(self, image: np.ndarray, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 [b h w c] and masks uint8 [b h w] on the device."""
        return torch.from_numpy(image).to(self.device), torch.from_numpy(mask).to(self.device)

    def step(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The loss, before an update. Images uint8 [b h w c] or float [b c h w], 0 to 1."""
        if self._compiled == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._ask(image, mask)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _logits(self, image: torch.Tensor) -> torch.Tensor:
        if image.dtype == torch.uint8:
            image = image.permute(0, 3, 1, 2).to(torch.float32).div(255)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._task.precision == "bf16"):
            return self._model(image.contiguous(memory_format=self._layout))

    def _loss(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self._logits(image).float(), mask.long(), ignore_index=IGNORE_INDEX)


class Step:
    """One batch over and over, on the device from the start; `how` is `Network`'s. Ready once a step is done."""

    def __init__(self, task: Task, **how):
        self._before = peak_mib()
        self._network, batch = Network(task, **how), task.made_up_batch()
        self._device, self._images = self._network.device, task.batch
        self._batch = self._network.put(batch["image"], batch["mask"])
        self.facts = {"first_seconds": timed(lambda: self._run(1), 1)["seconds"]}
        self.facts["first_loss"] = float(self._result)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def _run(self, times: int) -> None:
        for _ in range(times):
            self._result = self._network.step(*self._batch)
        wait(self._device)

    def turn(self, times: int) -> dict:
        """Waits for the device at the end only."""
        return timed(lambda: self._run(times), times * self._images)

    def finish(self) -> dict:
        """Peak memory in MiB: a GPU's by its allocator, after the first step; a CPU's resident above the import."""
        if self._device.type == "cuda":
            return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}
        peak = peak_mib()
        return {"peak_mib": peak and peak - self._before}


class Epoch:
    """Whole epochs of the article's loader, as many worker processes as `source` says, kept from epoch to epoch, with
    the eager channels_last step.
    """

    def __init__(self, task: Task, steps: int, source: Source):
        self._network, self._steps, self._images = Network(task), steps, task.batch
        self._loader = source.torch_loader(task.batch, source.workers, keep=True)
        self.facts = {"steps": steps}

    def turn(self, times: int) -> dict:
        """Epochs."""

        def work():
            for _ in range(times):
                for image, mask in self._loader:
                    self._network.step(image.to(self._network.device), mask.to(self._network.device))
            wait(self._network.device)

        return timed(work, times * self._steps * self._images)
