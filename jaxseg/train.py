"""Trains a U-Net on a folder of images and masks: `python -m jaxseg.train --data FOLDER`; with no flags, on made-up
crop fields.

Ends with a table of scores and leaves a folder `runs/<name>/`: README.md, config.json, log.jsonl, curves.png, samples/,
checkpoints/{best,last} and TensorBoard events. `--resume RUN` goes on with a run that was stopped or killed, to the
same bits. Exit status: 0 done, 1 the loss was no longer finite or memory did not suffice, 2 a mistake that a person can
mend, 130 or 143 stopped by a signal (and saved).
"""

import gc
import signal
import sys
import traceback

from jaxseg.base import cli
from jaxseg.base.config import Config
from jaxseg.base.errors import NonFiniteLoss, OutOfMemory, Stopped, UserError


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    config = Config()
    try:
        config = cli.parse(argv)
        gc.disable()  # what is imported stays: looking it through again and again is half a second of a start
        from jaxseg.base import compilation
        from jaxseg.training import loop  # JAX and all else: not for -h, nor for a mistake on the command line

        gc.freeze()
        gc.enable()
        compilation.keep()
        loop.fit(config)
    except (UserError, NonFiniteLoss, OutOfMemory) as error:
        if config.run.debug:
            traceback.print_exc()
        mistake = isinstance(error, UserError)
        print(f"{'error' if mistake else 'stopped'}: {error}", file=sys.stderr)
        return 2 if mistake else 1
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:  # before there was anything to save
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
