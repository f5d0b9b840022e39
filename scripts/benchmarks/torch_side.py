"""PyTorch's contenders: the parity suite's U-Net, set up as fast as PyTorch's users know to, and the article's loader.

On a GPU: TF32 for float32, cudnn.benchmark, and steps that do not wait for the host. In bfloat16 under autocast.
"""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from benchmarks.task import LEARNING_RATE, Source, Task
from benchmarks.workers import Contender, peak_mib, threads
from jaxseg.base.config import IGNORE_INDEX
from parity.reference.dataset import TileDataset
from parity.reference.unet import UNet


def loader(source: Source, batch: int, workers: int, keep: bool) -> DataLoader:
    """The article's loader. `keep`: its processes live from epoch to epoch, which the article's do not."""
    dataset = TileDataset(source.folder / "train", source.folder / "Ltrain")
    dataset.names = [pair.image.name for pair in source.pairs]
    return DataLoader(dataset, batch, shuffle=True, num_workers=workers, persistent_workers=keep and workers > 0)


class Network:
    """The U-Net with its step, on a GPU if there is one.

    - `weights`: file of the initial weights
    - `layout`: "contiguous" or "channels_last"
    - `fused`: Adam in one kernel
    - `compiled`: a mode of torch.compile, which gets everything from the uint8 images to the loss; None for eager
    - `tuned`: cuDNN times its kernels
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
        torch.set_num_threads(threads())
        torch.backends.cudnn.benchmark = tuned
        torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "highest")
        self.device, self._task = torch.device("cuda" if torch.cuda.is_available() else "cpu"), task
        self._layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
        self._model = UNet(widths=task.widths)
        if weights is not None:
            with np.load(weights) as arrays:
                self._model.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()}, strict=False)
        self._model.to(self.device, memory_format=self._layout).train()
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=LEARNING_RATE, fused=fused)
        self._compiled = compiled
        self._ask = torch.compile(self._loss, mode=compiled, dynamic=False) if compiled else self._loss

    def step(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Updates and returns the loss before. Images: uint8 [b h w c], or float32 [b c h w] in 0..1."""
        if self._compiled == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._ask(image, mask)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _loss(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if image.dtype == torch.uint8:
            image = image.permute(0, 3, 1, 2).to(torch.float32).div(255)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._task.precision == "bf16"):
            logits = self._model(image.contiguous(memory_format=self._layout))
        return F.cross_entropy(logits.float(), mask.long(), ignore_index=IGNORE_INDEX)


def step(task: Task, **how) -> Contender:
    """One batch over and over, on the device from the start; `how` as for `Network`. Ready after the first step."""
    before, network, batch = peak_mib(), Network(task, **how), task.made_up_batch()
    image, mask = (torch.from_numpy(batch[name]).to(network.device) for name in ("image", "mask"))

    def run(times: int) -> float:
        for _ in range(times):
            loss = network.step(image, mask)
        return loss.item()  # waits for the device

    def finish() -> dict:
        """Peak MiB: a GPU's by its allocator, after the first step; a CPU's resident above the import."""
        gpu = torch.cuda.is_available()
        return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20 if gpu else peak_mib() - before}

    began = time.perf_counter()
    facts = {"first_loss": run(1), "first_seconds": time.perf_counter() - began}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return Contender(lambda times: run(times) and None, task.batch, facts, finish)


def epoch(task: Task, steps: int, source: Source) -> Contender:
    """Whole epochs of the article's loader, its processes kept, with the eager channels_last step."""
    network, batches = Network(task), loader(source, task.batch, source.workers, keep=True)

    def run(times: int) -> None:
        for image, mask in (batch for _ in range(times) for batch in batches):
            loss = network.step(image.to(network.device), mask.to(network.device))
        loss.item()  # waits for the device

    return Contender(run, steps * task.batch)


def reader(source: Source, batch: int, workers: int, keep: bool) -> Contender:
    """The article's loader, to batches of float32 on the host."""
    batches = loader(source, batch, workers, keep)

    def run(times: int) -> None:
        for _ in (batch for _ in range(times) for batch in batches):
            pass

    return Contender(run, source.tiles)
