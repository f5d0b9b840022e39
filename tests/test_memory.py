import os
import platform
import subprocess
import sys

import pytest

from jaxseg.base import memory

FAULTS = """
import resource, sys
import numpy as np
from jaxseg.base.memory import keep_freed

assert keep_freed() is (sys.argv[1] == "kept")
for _ in range(3):
    np.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_freed_memory_is_used_again_without_new_pages():
    def faults(how, **more):
        clean = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, env=clean | more).stdout)

    assert faults("kept") < 100
    assert faults("returned", MALLOC_TRIM_THRESHOLD_="100000") > 100


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert memory.keep_freed() is False
