"""Test that headers are read and objects written in several threads, and pydicom warns in no thread while another needs quiet."""

from __future__ import annotations

import logging
import threading
import warnings

import pytest
from pydicom import config

from synboost_monai.dicom.quiet import quiet


def state() -> tuple[object, ...]:
    return config.settings.reading_validation_mode, logging.getLogger("pydicom").level, list(warnings.filters)


def test_one_thread_that_leaves_takes_nothing_from_another() -> None:
    before = state()
    is_inside, may_leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet():
            is_inside.set()
            may_leave.wait(10)

    thread = threading.Thread(target=other)
    with quiet():
        thread.start()
        assert is_inside.wait(10)
    with warnings.catch_warnings(record=True) as caught:  # the first has left, the other is still inside
        assert config.settings.reading_validation_mode == config.IGNORE
        assert not logging.getLogger("highdicom.base").isEnabledFor(logging.CRITICAL)
        warnings.warn("a name", stacklevel=1)
    assert not caught
    may_leave.set()
    thread.join()
    assert state() == before


def test_quiet_ends_with_an_error_too() -> None:
    before = state()
    with pytest.raises(ValueError, match="of the test"), quiet(), quiet():
        raise ValueError("of the test")
    assert state() == before
