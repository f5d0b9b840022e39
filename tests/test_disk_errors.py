"""What Orbax raises and prints when a disk is full."""

import logging
from pathlib import Path

import pytest

from jaxseg.runs.disk_errors import writing

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


def test_error_of_the_system_is_one_oserror_without_tracebacks(logged):
    said = r"\[Errno 28\] No space left on device: 'checkpoints/last'"
    with pytest.raises(OSError, match=said), writing(Path("checkpoints/last")):
        fails()
    logging.getLogger("absl").error("a thread failed later", exc_info=ValueError("x"))
    logging.getLogger("absl").error("a line")
    assert logged == ["a line"]


def test_other_errors_stay_what_they_are(logged):
    with pytest.raises(ValueError, match="shape"), writing(Path("last")):
        raise ValueError("shape")
    with pytest.raises(PermissionError, match="'last'"), writing(Path("last")):
        raise PermissionError(13, "Permission denied")


def test_tracebacks_are_logged_again_after_a_save(logged):
    with writing(Path("last")):
        pass
    logging.getLogger("absl").error("a thread failed", exc_info=ValueError("x"))
    assert logged == ["a thread failed"]
