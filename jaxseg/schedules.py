"""Learning-rate schedules, `jaxseg.learn.schedules`; `python -m jaxseg.schedules --schedule one_cycle` draws one."""

import sys

from jaxseg.learn.schedules import *  # noqa: F403

if __name__ == "__main__":
    from jaxseg.learn.draw_schedule import main

    sys.exit(main())
