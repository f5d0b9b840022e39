"""Writes a trained run as files for others: the body of `jaxseg.export`."""

from collections.abc import Callable
from pathlib import Path

from jaxseg.base import extra
from jaxseg.base.errors import UserError
from jaxseg.base.files import replace, try_writing
from jaxseg.base.options import Export
from jaxseg.base.terminal import console
from jaxseg.export import card, hub, weights
from jaxseg.export.trained import Trained, load

FILES = {
    "onnx": ("model.onnx",),
    "pth": ("model.pth",),
    "safetensors": ("model.safetensors",),
    "torch-code": ("model.py", "model.safetensors"),
}
CARD = "README.md"


def export(options: Export) -> list[Path]:
    """Writes the files and the model card, and returns their paths. Prints how the ONNX file compares with jaxseg.

    Raises UserError listing all faults found before anything is written, and when the ONNX file computes another result
    than jaxseg. Nothing is written then.
    """
    folder = options.out or options.run / "export"
    names = list(dict.fromkeys(name for kind in options.to for name in FILES[kind]))
    check(options, folder, names)
    trained = load(options.run, options.checkpoint)
    contents = {name: MADE[name](trained, options) for name in names}
    result = options.reader or ("probabilities" if options.probabilities else "classes")
    contents[CARD] = card.card(trained, names, result)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            replace(folder / name, content)
            console.print(f"{folder / name}  {len(content) / 2**20:.2f} MiB")
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror or error})") from None
    if options.push is not None:
        console.print(hub.upload(folder, list(contents), options.push, private=not options.public))
    return [folder / name for name in contents]


def check(options: Export, folder: Path, names: list[str]) -> None:
    """Raises UserError naming all options that cannot be fulfilled."""
    deepness = options.reader == "deepness"
    rules = [
        (options.to, "--to names nothing; expected onnx, pth, safetensors or torch-code"),
        (not deepness or "onnx" in options.to, "--for deepness is about ONNX; add --to onnx"),
        (not deepness or options.resolution is not None, "--for deepness needs --resolution, centimeters a pixel"),
        (options.resolution is None or options.resolution > 0,
         f"--resolution is {options.resolution}; expected centimeters, above 0"),
        (deepness or options.resolution is None, "--resolution is for --for deepness; leave it out"),
        (options.tile >= 1, f"--tile is {options.tile}; expected pixels, 1 or more"),
        (not deepness or not options.probabilities, "--probabilities: Deepness always gets them; leave it out"),
        (options.push is not None or not options.public, "--public is about --push; leave it out"),
    ]  # fmt: skip
    wrong = [message for holds, message in rules if not holds]
    needed = [("export", "--to onnx")] * ("onnx" in options.to) + [("hub", "--push")] * (options.push is not None)
    for attempt in (
        *(lambda name=name, what=what: extra.require(name, what) for name, what in needed),
        lambda: "pth" in options.to and weights.require_torch(),
        lambda: options.push and not extra.missing("hub") and hub.repository(options.push),
        lambda: try_folder(folder),
    ):
        try:
            attempt()
        except UserError as error:
            wrong.append(str(error))
    there = [str(folder / name) for name in (*names, CARD) if (folder / name).exists()]
    if there and not options.overwrite:
        wrong.append(f"{', '.join(there)}: exists; give another -o, or --overwrite to replace it")
    if wrong:
        raise UserError("\n".join(wrong))


def try_folder(folder: Path) -> None:
    """Raises UserError unless files can be written in `folder`, which need not exist."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"-o {folder}: is a file; give a folder")
    try:
        try_writing(folder)
    except OSError as error:
        raise UserError(f"-o {folder}: cannot be written to ({error.strerror or error}). Give another -o.") from None


def onnx(trained: Trained, options: Export) -> bytes:
    """Bytes of the ONNX file, which has been compared with jaxseg."""
    from jaxseg.export import onnx_file
    from jaxseg.export.verify import verify

    if options.reader == "deepness":
        how = {"fold": options.fold, "resolution": options.resolution, "tile": options.tile}
        model, feed = onnx_file.deepness_model(trained, **how), onnx_file.as_deepness
    else:
        how = {"fold": options.fold, "probabilities": options.probabilities}
        model, feed = onnx_file.plain_model(trained, **how), None
    console.print(f"onnx  {verify(model, trained, feed)}")
    return model.SerializeToString()


MADE: dict[str, Callable[[Trained, Export], bytes]] = {
    "model.onnx": onnx,
    "model.pth": lambda trained, _: weights.pth(trained),
    "model.safetensors": lambda trained, _: weights.safetensors(trained),
    "model.py": lambda trained, _: weights.torch_code(trained),
}
