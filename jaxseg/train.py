"""Trains a U-Net on a folder of images and masks: `python -m jaxseg.train --data FOLDER`.

Without flags it trains on artificial crop fields. It prints a table of scores and leaves a folder `runs/<name>/` with
README.md, config.json, log.jsonl, curves.png, samples/, checkpoints/{best,last} and TensorBoard events.
`--resume RUN` continues a run that was stopped or killed, with bit-identical results.

Exit status: 0 done, 1 the loss became NaN or infinite or memory was not enough, 2 something that the user can fix (a
mistake, a full disk, closed output), 129, 130 or 143 stopped by a signal (and saved).
"""

import gc
import sys

from jaxseg.base import cli, doors


def main(argv: list[str] | None = None) -> int:
    """Runs the command with `argv`, or else `sys.argv`, and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv

    def train() -> None:
        config = cli.parse(argv)
        gc.disable()  # scanning what imports create takes half a second of the start
        from jaxseg.base import compilation  # slow imports: not for -h or invalid flags
        from jaxseg.devices import processes
        from jaxseg.training import loop

        gc.freeze()
        gc.enable()
        processes.start(config.machine)
        compilation.try_jax()
        compilation.keep()
        loop.fit(config)

    status = doors.enter(train, debug="--debug" in argv)
    if "jaxseg.devices.processes" in sys.modules:
        sys.modules["jaxseg.devices.processes"].leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
