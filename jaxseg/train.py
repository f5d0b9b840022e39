"""Trains a U-Net on a folder of images and masks: `python -m jaxseg.train --data FOLDER`.

Without flags it trains on artificial crop fields. It prints a table of scores and leaves a folder `runs/<name>/` with
README.md, config.json, log.jsonl, curves.png, samples/, checkpoints/{best,last} and TensorBoard events.
`--resume RUN` continues a run that was stopped or killed, with bit-identical results.

Exit status: 0 done, 1 the loss became NaN or infinite or memory was not enough, 2 a mistake that the user can fix, 130
or 143 stopped by a signal (and saved).
"""

import gc
import signal
import sys
import traceback

from jaxseg.base import cli
from jaxseg.base.config import Config
from jaxseg.base.errors import NonFiniteLoss, OutOfMemory, Stopped, UserError, for_command


def main(argv: list[str] | None = None) -> int:
    """Runs the command with `argv`, or else `sys.argv`, and returns its exit status."""
    config = Config()
    try:
        config = cli.parse(argv)
        gc.disable()  # scanning what imports create takes half a second of the start
        from jaxseg.base import compilation
        from jaxseg.training import loop  # slow imports: not for -h or invalid flags

        gc.freeze()
        gc.enable()
        compilation.keep()
        loop.fit(config)
    except (UserError, NonFiniteLoss, OutOfMemory) as error:
        if config.run.debug:
            traceback.print_exc()
        mistake = isinstance(error, UserError)
        print(f"{'error' if mistake else 'stopped'}: {for_command(error)}", file=sys.stderr)
        return 2 if mistake else 1
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:  # before there is anything to save
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
