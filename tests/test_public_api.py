"""The public names: there, lazy, and the modules that they say they are."""

import importlib
import subprocess
import sys

import pytest

import jaxseg
from jaxseg.learn import losses, schedules

HEAVY = ("jax", "flax", "optax", "cv2", "numpy", "rich")


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, jaxseg; dir(jaxseg); print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("name", jaxseg.__all__)
def test_a_public_name_is_there_and_documented(name):
    thing = getattr(jaxseg, name)
    assert name in dir(jaxseg)
    assert thing.__doc__


def test_namespaces_are_the_rooms_modules():
    assert jaxseg.losses is losses
    public = {name: thing for name, thing in vars(schedules).items() if not name.startswith("_")}
    assert public.items() <= vars(jaxseg.schedules).items()
    assert importlib.import_module("jaxseg.schedules") is jaxseg.schedules


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'jaxseg' has no attribute 'Unet'"):
        jaxseg.Unet  # noqa: B018
    with pytest.raises(ImportError):
        from jaxseg import Unet  # noqa: F401
