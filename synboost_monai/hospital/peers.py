"""Find the other ends of a run by their options: the archive that studies are fetched from, and the one that results are sent to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from synboost_monai.dicom.network.address import VARIABLES, Access, WebAddress, is_web
from synboost_monai.dicom.network.common import check_web_installed
from synboost_monai.dicom.network.send import Destination, send_files
from synboost_monai.dicom.network.tls import Tls
from synboost_monai.hospital.delivery import Send

if TYPE_CHECKING:
    from synboost_monai.dicom.network.web import WebArchive

OTHER = f"{VARIABLES}TO_"
"""Start of the environment variables for the service that results go to, if another one is searched: no secret goes to both."""


@dataclass(frozen=True)
class Peers:
    """Hold the other ends of a run."""

    source: WebArchive | None = None
    """Archive whose studies are fetched."""
    send: Send | None = None
    """Sends results; None: they stay here."""
    is_same: bool = False
    """Whether both are one service."""

    @classmethod
    def of(
        cls,
        source: tuple[str, str | None],
        destination: tuple[str, str | None],
        *,
        ae_title: str | None = None,
        tls: Tls | None = None,
        max_object_mb: float = 4096,
        stop: threading.Event | None = None,
    ) -> Peers:
        """Return the peers that two options name, with their secrets from the environment.

        Args:
            source: name of the option, for messages, and the URL of a DICOMweb service with a query, or None.
            destination: the same without a query; with `ae_title` also TITLE@HOST:PORT.
            ae_title: AE title of the sender.
            tls: how connections to TITLE@HOST:PORT are encrypted.
            max_object_mb: size of the largest object that is fetched, in MB (2^20 bytes).
            stop: when it is set, requests end at once.
        Raises:
            ValueError: if an option, or a variable of the environment, is wrong.
            FileNotFoundError: if there is no such file of certificates.
        """
        found: dict[str, WebArchive] = {}
        addresses = {
            name: WebAddress.parse(text, name, takes_query=name == source[0])
            for name, text in (source, destination)
            if text is not None and (is_web(text) or name == source[0] or ae_title is None)
        }
        send: Send | None = None
        access: Access | None = None
        if addresses:
            check_web_installed()
            from synboost_monai.dicom.network.web import WebArchive
            from synboost_monai.dicom.network.web_session import WebLimits

            limits = WebLimits(max_object_mb=max_object_mb)
        if destination[0] in addresses and tls is not None and tls.is_client:
            raise ValueError(
                f"tls {tls.use} is for TITLE@HOST:PORT; an address with https:// is encrypted anyway, with certificates of the "
                f"variables {VARIABLES}...: say tls none or listen"
            )
        is_one_server = len({address.origin for address in addresses.values()}) == 1
        for name, address in addresses.items():
            if access is None or not is_one_server:
                access = Access.of_environment(address, VARIABLES if access is None else OTHER)
            found[name] = WebArchive(address, access, limits, stop)
        if destination[0] in found:
            send = found[destination[0]].send
        elif destination[1] is not None and ae_title is not None:
            send = send_by_dimse(Destination.parse(destination[1], tls), ae_title)
        is_same = len({address.base for address in addresses.values()}) < len(addresses)
        return cls(found.get(source[0]), send, is_same)


def send_by_dimse(destination: Destination, ae_title: str) -> Send:
    """Return what sends files by C-STORE."""

    def send(paths: Sequence[Path], scratch: Path) -> Iterator[tuple[Path, str]]:
        return send_files(paths, destination, ae_title, scratch)

    return send
