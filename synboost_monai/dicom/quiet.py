"""No words of pydicom and highdicom while headers are read and objects are written: their warnings and logs repeat values, which may be
names.

Filters of warnings, settings of pydicom and loggers belong to the whole process, and studies are worked on in several threads. So the
first that asks for quiet makes it, and the last that leaves ends it; each for itself would give back what another still needs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

LOGGERS = ("pydicom", "highdicom")
"""Names of the loggers that say nothing, with all below them."""
_SILENT = logging.CRITICAL + 1

_lock = threading.Lock()
_depth = 0
_restore = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, without the logs of `LOGGERS`, and with pydicom taking values as they are."""
    global _depth
    with _lock:
        if _depth == 0:
            _begin()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _restore.close()


def _begin() -> None:
    """Make it quiet; `_restore` holds what is to be undone."""
    from pydicom import config

    _restore.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    mode = config.settings.reading_validation_mode
    _restore.callback(setattr, config.settings, "reading_validation_mode", mode)
    config.settings.reading_validation_mode = config.IGNORE
    for logger in map(logging.getLogger, LOGGERS):
        _restore.callback(logger.setLevel, logger.level)
        logger.setLevel(_SILENT)  # those below, which take their level from it, are what highdicom speaks by
