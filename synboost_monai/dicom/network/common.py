"""Share code between receiving and sending DICOM objects: status codes, AE titles, and silencing pynetdicom.

Services: DICOM PS3.4 B (Storage) and A (Verification); status codes: PS3.4 table B.2-1, PS3.7 annex C.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import logging
import re
from collections.abc import Iterator
from enum import IntEnum

from synboost_monai.dicom.quiet import quiet

SPACE_CHECK = 16 << 20
"""Bytes received between two checks of the free disk space."""
_TITLE = re.compile(r"[ !-\[\]-~]{1,16}")


class Status(IntEnum):
    """Name the status codes that answer a C-STORE."""

    SUCCESS = 0x0000
    OUT_OF_RESOURCES = 0xA700
    MISMATCH = 0xA900
    """The data set does not match the request."""
    CANNOT_UNDERSTAND = 0xC000


class NotReachableError(Exception):
    """Say why nothing can be sent to or fetched from a peer now: nobody answers, or it refuses us."""


def check_title(title: str) -> None:
    """Make sure that a text is a valid AE title.

    Raises:
        ValueError: if it is not.
    """
    if not _TITLE.fullmatch(title) or not title.strip():
        raise ValueError(f"{title!r} is no AE title: 1 to 16 printable characters without a backslash")


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, so that nothing passes a network."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_installed() -> None:
    """Make sure that pynetdicom is installed.

    Raises:
        ValueError: if it is not installed.
    """
    if importlib.util.find_spec("pynetdicom") is None:
        raise ValueError('a DICOM node needs pynetdicom: pip install "synboost-monai[listen]"')


def check_web_installed() -> None:
    """Make sure that dicomweb-client is installed.

    Raises:
        ValueError: if it is not installed.
    """
    if importlib.util.find_spec("dicomweb_client") is None:
        raise ValueError('DICOMweb needs dicomweb-client: pip install "synboost-monai[dicomweb]"')


@contextlib.contextmanager
def quiet_network() -> Iterator[None]:
    """Silence logs and warnings of pynetdicom and pydicom, which show headers, and pass objects through files, in pieces."""
    from pynetdicom import _config

    wanted = {"LOG_HANDLER_LEVEL": "none", "STORE_RECV_CHUNKED_DATASET": True, "STORE_SEND_CHUNKED_DATASET": True}
    logger = logging.getLogger("pynetdicom")
    with contextlib.ExitStack() as restore, quiet():
        for name, value in wanted.items():
            restore.callback(setattr, _config, name, getattr(_config, name))
            setattr(_config, name, value)
        restore.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL + 1)
        yield
