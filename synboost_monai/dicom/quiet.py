"""Silence libraries whose warnings and logs repeat header values or addresses, in which there may be names.

Warning filters, pydicom's settings and loggers belong to the whole process, and several threads work on studies. So the first thread
that asks for quiet turns it on, and the last that leaves turns it off; otherwise one thread would restore what another still needs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

LOGGERS = ("pydicom", "highdicom", "dicomweb_client", "retrying", "urllib3")
"""Loggers that are silenced, with all loggers below them."""
_SILENT = logging.CRITICAL + 1

_lock = threading.Lock()
_depth = 0
_restore = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and the logs of `LOGGERS`, and let pydicom take values as they are."""
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
    """Turn quiet on; `_restore` holds the callbacks that undo it."""
    from pydicom import config

    _restore.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    mode = config.settings.reading_validation_mode
    _restore.callback(setattr, config.settings, "reading_validation_mode", mode)
    config.settings.reading_validation_mode = config.IGNORE
    for logger in map(logging.getLogger, LOGGERS):
        _restore.callback(logger.setLevel, logger.level)
        logger.setLevel(_SILENT)  # highdicom logs through child loggers, which take their level from this one
