"""PyTorch's contenders: the parity suite's U-Net, set up as fast as PyTorch's users know to, and the article's loader.

On a GPU: TF32 for float32, cudnn.benchmark, and steps that do not wait for the host. In bfloat16 under autocast.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from benchmarks.task import LEARNING_RATE, Source, Task
from benchmarks.workers import Contender, peak_mib, threads
from jaxseg.base.config import IGNORE_INDEX
from parity.reference.dataset import TileDataset
from parity.reference.resnet import EncoderUNet
from parity.reference.unet import UNet


def loader(source: Source, batch: int, workers: int, keep: bool) -> DataLoader:
    """The article's loader. `keep`: its processes live from epoch to epoch, which the article's do not."""
    dataset = TileDataset(source.folder / "train", source.folder / "Ltrain")
    dataset.names = [pair.image.name for pair in source.pairs]
    return DataLoader(dataset, batch, shuffle=True, num_workers=workers, persistent_workers=keep and workers > 0)


def training(
    task: Task,
    weights: Path | None = None,
    layout: str = "channels_last",
    fused: bool = True,
    compiled: str | None = None,
    tuned: bool = True,
) -> tuple[Callable, torch.device]:
    """A training step from images and masks to the loss, and its device: a GPU if there is one.

    - `weights`: file of the initial weights
    - `layout`: "contiguous" or "channels_last"
    - `fused`: Adam in one kernel
    - `compiled`: a mode of torch.compile, which gets everything from the images to the loss; None for eager
    - `tuned`: cuDNN times its kernels

    The step's images are uint8 [b h w c], or float32 [b c h w] in 0..1.
    """
    torch.set_num_threads(threads())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = tuned
        torch.set_float32_matmul_precision("high")
    form = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
    model = EncoderUNet(task.encoder) if task.encoder else UNet(widths=task.widths)
    if weights is not None:
        with np.load(weights) as arrays:
            model.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()}, strict=False)
    model.to(device, memory_format=form).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=fused)

    def loss_of(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if image.dtype == torch.uint8:
            image = image.permute(0, 3, 1, 2).to(torch.float32).div(255)
        with torch.autocast(device.type, torch.bfloat16, enabled=task.precision == "bf16"):
            logits = model(image.contiguous(memory_format=form))
        return F.cross_entropy(logits.float(), mask.long(), ignore_index=IGNORE_INDEX)

    ask = torch.compile(loss_of, mode=compiled, dynamic=False) if compiled else loss_of

    def train_step(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if compiled == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad(set_to_none=True)
        loss = ask(image, mask)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train_step, device


def step(task: Task, **how) -> Contender:
    """One batch over and over, on the device from the start; `how` as for `training`. Ready after the first step."""
    before, batch = peak_mib(), task.made_up_batch()
    train_step, device = training(task, **how)
    image, mask = (torch.from_numpy(batch[name]).to(device) for name in ("image", "mask"))

    def run(times: int) -> float:
        for _ in range(times):
            loss = train_step(image, mask)
        return loss.item()  # waits for the device

    def finish() -> dict:
        """Peak MiB: a GPU's by its allocator, after the first step; a CPU's resident above the import."""
        gpu = device.type == "cuda"
        return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20 if gpu else peak_mib() - before}

    began = time.perf_counter()
    facts = {"first_loss": run(1), "first_seconds": time.perf_counter() - began}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return Contender(lambda times: run(times) and None, task.batch, facts, finish)


def epoch(task: Task, steps: int, source: Source) -> Contender:
    """Whole epochs of the article's loader, its processes kept, with the eager channels_last step."""
    (train_step, device), batches = training(task), loader(source, task.batch, source.workers, keep=True)

    def run(times: int) -> None:
        for image, mask in (batch for _ in range(times) for batch in batches):
            loss = train_step(image.to(device), mask.to(device))
        loss.item()  # waits for the device

    return Contender(run, steps * task.batch)


def reader(source: Source, batch: int, workers: int, keep: bool) -> Contender:
    """The article's loader, to batches of float32 on the host."""
    batches = loader(source, batch, workers, keep)

    def run(times: int) -> None:
        for _ in (batch for _ in range(times) for batch in batches):
            pass

    return Contender(run, source.tiles)
