"""Weights with which an encoder starts: where they are, their digest, and the colors they were trained on."""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

from jaxseg.base.config import Config
from jaxseg.base.errors import UserError
from jaxseg.base.terminal import console
from jaxseg.nn.weight_files import NAMES, is_pretrained

REVISIONS = {
    "smp-hub/resnet18.imagenet": "3f2325ff978283d47aa6a1d6878ca20565622683",
    "smp-hub/resnet34.imagenet": "7a57b34f723329ff020b3f8bc41771163c519d0c",
    "smp-hub/resnet50.imagenet": "00cb74e366966d59cd9a35af57e618af9f88efe9",
}
"""Revisions of `imagenet`, those that segmentation_models.pytorch takes."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of red, green and blue, with which torchvision's weights were trained."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A file of weights, and the mean and deviation of red, green and blue that they were trained with, if known."""

    path: Path
    standard: tuple[tuple[float, ...], tuple[float, ...]] | None

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def find(source: str, encoder: str) -> Pretrained:
    """Finds the weights of an encoder, and downloads them if they are on the Hub and were not before.

    - `source`: path of a file or folder, `hf:OWNER/NAME`, or `imagenet`
    - `encoder`: name of the encoder, which `imagenet` needs

    Raises UserError when there is no file, when it cannot be downloaded, and without huggingface_hub.
    """
    repo = f"smp-hub/{encoder}.imagenet" if source == "imagenet" else source.removeprefix("hf:")
    if source == "imagenet" or source.startswith("hf:"):
        return described(download(repo, REVISIONS.get(repo) if source == "imagenet" else None))
    path = Path(source)
    if path.is_dir():
        there = [path / name for name in NAMES if (path / name).is_file()]
        if not there:
            raise UserError(f"{path}: no weights in it; expected {' or '.join(NAMES)}")
        return described(there[0])
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected one, or hf:OWNER/NAME, or imagenet")
    return Pretrained(path, IMAGENET)


def described(path: Path) -> Pretrained:
    """Weights whose folder has a config.json: of timm, of an encoder or of a whole network of smp; else ImageNet's.

    A network of smp that was trained without ImageNet's weights has no known mean and deviation.
    """
    config = path.parent / "config.json"
    try:
        held = json.loads(config.read_text(encoding="utf-8"))
        held = held.get("pretrained_cfg", held)
        if "encoder_name" in held and held.get("encoder_weights") is None:
            return Pretrained(path, None)
        if "mean" not in held:
            return Pretrained(path, IMAGENET)
        mean, std = (tuple(map(float, held[name])) for name in ("mean", "std"))
    except FileNotFoundError:
        return Pretrained(path, IMAGENET)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{config}: cannot be read ({error})") from None
    if held.get("input_space", "RGB") == "BGR":
        mean, std = mean[::-1], std[::-1]
    return Pretrained(path, (mean, std))


def download(repo: str, revision: str | None = None) -> Path:
    """Downloads the weights in a repository of the Hugging Face Hub, with their config.json, and returns their path.

    Files that are in its cache already need no network. Raises UserError when they cannot be had.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        advice = "pip install 'jaxseg[hub]', or download its file and give the path"
        raise UserError(f"hf:{repo}: needs huggingface_hub: {advice}") from None

    def get(name: str) -> Path:
        return Path(hf_hub_download(repo, name, revision=revision))

    try:
        with contextlib.suppress(EntryNotFoundError):
            get("config.json")
        for name in NAMES:
            try:
                return get(name)
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):
                    raise
    except Exception as error:  # huggingface_hub, its HTTP client and the system each have their own
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        advice = "Without a network, download the file elsewhere and give its path"
        raise UserError(f"hf:{repo}: cannot be downloaded ({first[:200]}). {advice}.") from None
    raise UserError(f"hf:{repo}: has none of {', '.join(NAMES)}")


def settled(config: Config) -> Config:
    """Fills in what follows from the file of pretrained weights: its digest, and the normalization.

    A resumed run has both. Raises UserError when there are no weights, or when they have another digest.
    """
    run, data = config.run, config.data
    if run.resume is not None or not config.model.encoder:
        return config
    if run.encoder_weights is not None:
        found = find(run.encoder_weights, config.model.encoder)
        digest = checked_digest(found, run.encoder_sha256)
        run = dataclasses.replace(run, encoder_sha256=digest)
        console.print(f"load  encoder from {found.path}, SHA-256 {digest[:16]}")
    elif run.load is not None and is_pretrained(run.load):
        found = find(str(run.load), config.model.encoder)
    else:
        return config
    if data.normalize in (None, "encoder") and found.standard is not None and not data.encoder_mean:
        mean, std = found.standard
        data = dataclasses.replace(data, normalize="encoder", encoder_mean=mean, encoder_std=std)
    return dataclasses.replace(config, run=run, data=data)


def checked_digest(found: Pretrained, wanted: str | None) -> str:
    """Returns the SHA-256 of a file. Raises UserError unless it is the one that is wanted, if one is."""
    digest = found.sha256
    if wanted is not None and digest != wanted:
        raise UserError(f"{found.path}: has SHA-256 {digest}; expected {wanted}, by --encoder-sha256")
    return digest
