"""What Orbax raises and prints when a disk is full."""

import contextlib
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest

from jaxseg.runs import disk_errors
from jaxseg.runs.disk_errors import most_bytes, writing

TREES = {"model": {"w": np.zeros(1000, np.float32)}, "optimizer": {"mu": np.zeros(1000, np.float32)}}

TENSORSTORE = "RESOURCE_EXHAUSTED: Error writing \"w/0\": Failed to write 37 bytes [os_error_code='28']"


@pytest.fixture
def logged():
    """Messages of absl's logger, which has no filters afterwards."""
    logger, messages, handler = logging.getLogger("absl"), [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
    logger.filters.clear()


def fails():
    logging.getLogger("absl").error("a thread failed", exc_info=ValueError("x"))
    raise ValueError(TENSORSTORE)


def test_error_of_the_system_is_one_oserror_without_tracebacks(logged, tmp_path):
    said = f"No space left on device: '{re.escape(str(tmp_path))}'"
    with pytest.raises(OSError, match=said), writing(tmp_path, TREES):
        fails()
    logging.getLogger("absl").error("a thread failed later", exc_info=ValueError("x"))
    logging.getLogger("absl").error("a line")
    assert logged == ["a line"]


def test_other_errors_stay_what_they_are(logged, tmp_path):
    with pytest.raises(ValueError, match="shape"), writing(tmp_path, TREES):
        raise ValueError("shape")
    with pytest.raises(PermissionError, match=str(tmp_path.name)), writing(tmp_path, TREES):
        raise PermissionError(13, "Permission denied")


def test_tracebacks_are_logged_again_after_a_save(logged, tmp_path):
    with writing(tmp_path, TREES):
        pass
    logging.getLogger("absl").error("a thread failed", exc_info=ValueError("x"))
    assert logged == ["a thread failed"]


@pytest.mark.parametrize("missing", [0, 1])
def test_room_is_looked_for_before_anything_is_written(tmp_path, monkeypatch, missing):
    free = most_bytes(TREES) - missing
    assert free > 8000
    monkeypatch.setattr(disk_errors.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    expected = pytest.raises(OSError, match=tmp_path.name) if missing else contextlib.nullcontext()
    with expected, writing(tmp_path, TREES):
        assert not missing
