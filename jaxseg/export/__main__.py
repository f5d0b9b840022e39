"""Writes a trained run as files that run elsewhere: `python -m jaxseg.export RUN --to onnx pth safetensors torch-code`

Writes `model.onnx`, `model.pth`, `model.safetensors` or `model.py` with its weights to a folder, and a model card,
README.md. The ONNX file holds normalization, class names, palette and bands; it is compared with jaxseg before it is
kept. `onnx` needs the extra `export`, `--push` needs `hub`, and `pth` needs PyTorch.

Exit status: 0 done, 2 something that the user can fix; then no file was written, unless the upload failed. 130 stopped
by Ctrl-C.
"""

import sys

import tyro

from jaxseg.base import doors
from jaxseg.base.options import Export


def main(argv: list[str] | None = None) -> int:
    """Runs the command with `argv`, or else `sys.argv`, and returns its exit status."""
    options = tyro.cli(Export, args=argv, prog="python -m jaxseg.export", config=(tyro.conf.DisallowNone,))

    def run() -> None:
        from jaxseg.base import compilation
        from jaxseg.export import export  # slow imports: not for -h

        compilation.try_jax()
        compilation.keep()
        export.export(options)

    return doors.enter(run, debug=options.debug, interrupted="stopped")


if __name__ == "__main__":
    sys.exit(main())
