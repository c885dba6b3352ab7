"""Receive DICOM objects over the network, by C-STORE, into files.

Ultrasound images alone (and C-ECHO) are taken, from peers and AE titles of lists, and what comes is written straight into files, so
memory stays flat; sizes and times are bounded, whatever a peer sends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from synboost_monai.dicom.frame_codecs import JPEG_2000, JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LS, RLE
from synboost_monai.dicom.network import Status, check_title
from synboost_monai.dicom.scan import ULTRASOUND_CLASSES
from synboost_monai.dicom.structure import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT

VERIFICATION = "1.2.840.10008.1.1"
"""SOP class of C-ECHO."""
PDU_SPARE = 4096
"""Bytes that a PDU may be longer than agreed: some count its head, some do not."""
MIN_PDU_LIMIT = 1 << 18
"""Bytes; a request for an association, which has no agreed length yet, may be so long."""
SPACE_CHECK = 16 << 20
"""Bytes that are received between two looks at the free space of the disk."""


class Receiver(Protocol):
    """Takes what a server receives; called from several threads at a time."""

    def store(self, path: Path, sop_instance_uid: str, connection: int) -> Status:
        """A whole object has come. To keep the file, move it away; what is left is removed.

        Args:
            path: of a DICOM file.
            sop_instance_uid: as the request says.
            connection: number of the connection that it came over.
        """

    def progress(self, connection: int) -> None:
        """A part of an object has come."""

    def closed(self, connection: int) -> None:
        """A connection has ended."""


@dataclass(frozen=True)
class ServerOptions:
    """Whom a server listens to, and what it takes."""

    host: str = "127.0.0.1"
    port: int = 11112
    """0: one that is free."""
    ae_title: str = "SYNBOOST"
    allowed_titles: tuple[str, ...] = ()
    """AE titles of peers; empty: any, which is for loopback alone."""
    allowed_peers: tuple[str, ...] = ()
    """Addresses or networks (10.1.0.0/16) of peers; empty: this machine alone."""
    max_pdu: int = 1 << 17
    """Bytes of a protocol data unit."""
    max_object_mb: float = 4096
    """MB (2^20 bytes) of an object; the connection of a larger one is cut."""
    min_free_mb: float = 1024
    """MB that stay free on the disk."""
    max_connections: int = 8
    timeout: float = 60
    """Seconds that a peer may be silent."""

    def __post_init__(self) -> None:
        for title in (self.ae_title, *self.allowed_titles):
            check_title(title)
        for peer in self.allowed_peers:
            try:
                ipaddress.ip_network(peer, strict=False)
            except ValueError as error:
                raise ValueError(
                    f"{peer!r} is no address or network of peers, such as 10.1.2.3 or 10.1.0.0/16"
                ) from error
        if not is_loopback(self.host) and not (self.allowed_titles and self.allowed_peers):
            raise ValueError(f"other machines reach {self.host}: say who may send, by their AE titles and addresses")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0 to 65535, got {self.port}")
        if not 4096 <= self.max_pdu <= 1 << 24:
            raise ValueError(f"max_pdu must be 4096 to {1 << 24} bytes, got {self.max_pdu}")
        for name in ("max_object_mb", "max_connections", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}")

    def is_peer(self, address: str) -> bool:
        """Whether a machine may connect."""
        try:
            ip = ipaddress.ip_address(address.split("%")[0])
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not self.allowed_peers:
            return ip.is_loopback
        return any(ip in ipaddress.ip_network(peer, strict=False) for peer in self.allowed_peers)


class StorageServer:
    """A C-STORE SCP; used in `with`, inside `quiet_network`.

    Args:
        receiver: takes the objects.
        folder: for objects that are being received; emptied first. On the disk of the place where `receiver` puts them.
        options: whom and what it takes.
        say: told in one line whenever something is refused.
    Raises:
        OSError: if the port is taken or the address is not of this machine.
    """

    def __init__(self, receiver: Receiver, folder: Path, options: ServerOptions, say: Callable[[str], None]) -> None:
        from pynetdicom import AE, evt

        self._receiver, self._folder, self._options, self._say = receiver, folder, options, say
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._connections: dict[int, _Connection] = {}
        entity = AE(ae_title=options.ae_title)
        entity.maximum_pdu_size = options.max_pdu
        entity.maximum_associations = options.max_connections
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = options.timeout
        entity.require_called_aet = True
        entity.require_calling_aet = list(options.allowed_titles)
        entity.add_supported_context(VERIFICATION)
        for sop_class in sorted(ULTRASOUND_CLASSES):
            entity.add_supported_context(sop_class, received_syntaxes())
        self._entity = entity
        self._temporary_before = tempfile.tempdir
        tempfile.tempdir = str(folder)  # where pynetdicom writes what comes
        try:
            self._server = entity.start_server(
                (options.host, options.port),
                block=False,
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, self._on_open),
                    (evt.EVT_CONN_CLOSE, self._on_close),
                    (evt.EVT_REJECTED, self._on_rejected),
                    (evt.EVT_C_STORE, self._on_store),
                ],
            )
        except BaseException:
            tempfile.tempdir = self._temporary_before
            raise

    @property
    def port(self) -> int:
        """That it listens on."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def close(self, grace: float = 10) -> None:
        """Take no new connections, let those that are open end for so many seconds, cut the others."""
        assert self._server is not None
        with contextlib.suppress(Exception):
            self._server.shutdown()
        end = time.monotonic() + grace
        while self._entity.active_associations and time.monotonic() < end:
            time.sleep(0.05)
        with contextlib.suppress(Exception):
            self._entity.shutdown()
        tempfile.tempdir = self._temporary_before

    def __enter__(self) -> StorageServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_open(self, event: Any) -> None:
        """A peer has connected: bound what it may send, or hang up."""
        address = str(event.address[0])
        wrapped = event.assoc.dul.socket
        if not self._options.is_peer(address):
            self._say(f"a connection from {address} was refused: its address is not allowed")
            _hang_up(wrapped.socket)
            return
        wrapped.socket.settimeout(self._options.timeout)
        connection = _Connection(self._folder, self._options, self._receiver, address)
        self._connections[id(event.assoc)] = connection
        receive = wrapped.recv

        def bounded(count: int) -> Any:
            problem = connection.expect(count)
            if problem:
                self._say(f"the connection of {address} was cut: {problem}")
                raise OSError(problem)  # taken as a connection that is lost
            return receive(count)

        wrapped.recv = bounded

    def _on_close(self, event: Any) -> None:
        """A connection has ended: remove what was not whole."""
        connection = self._connections.pop(id(event.assoc), None)
        if connection is not None:
            self._receiver.closed(connection.number)
        message = event.assoc.dimse.message
        path = getattr(message, "_data_set_path", None)
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                message._data_set_file.close()
            with contextlib.suppress(OSError):
                os.unlink(path)
            self._say("a connection ended in the middle of an object, which was not kept")

    def _on_rejected(self, event: Any) -> None:
        connection = self._connections.get(id(event.assoc))
        who = connection.address if connection else "a peer"
        self._say(f"an association with {who} was refused: an AE title is not allowed, or there are too many")

    def _on_store(self, event: Any) -> int:
        """A whole object has come."""
        connection = self._connections.get(id(event.assoc))
        if connection is None:
            return Status.CANNOT_UNDERSTAND
        try:
            if str(event.request.AffectedSOPClassUID) != str(event.context.abstract_syntax):
                return Status.MISMATCH
            if not connection.has_space():
                self._say("an object was refused: the disk is nearly full")
                return Status.OUT_OF_RESOURCES
            return self._receiver.store(
                Path(event.dataset_path), str(event.request.AffectedSOPInstanceUID), connection.number
            )
        except Exception as error:  # noqa: BLE001  pynetdicom would print it, and it may hold anything of the object
            problem = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else "unforeseen"
            self._say(f"an object could not be kept: {problem}")
            return Status.OUT_OF_RESOURCES
        finally:
            connection.begin_object()


class _Connection:
    """Counts what a peer sends."""

    _count = 0
    _lock = threading.Lock()

    def __init__(self, folder: Path, options: ServerOptions, receiver: Receiver, address: str) -> None:
        with self._lock:
            _Connection._count += 1
            self.number = _Connection._count
        self._folder, self._options, self._receiver, self.address = folder, options, receiver, address
        self._max_pdu = max(options.max_pdu + PDU_SPARE, MIN_PDU_LIMIT)
        self.begin_object()

    def begin_object(self) -> None:
        self._bytes = self._unchecked = 0

    def has_space(self) -> bool:
        return shutil.disk_usage(self._folder).free >= self._options.min_free_mb * 2**20

    def expect(self, count: int) -> str:
        """Count bytes that are about to be read; says what is wrong with that, '' if nothing."""
        if count > self._max_pdu:
            return f"it announced {count} bytes at once"
        self._bytes += count
        self._unchecked += count
        if self._bytes > self._options.max_object_mb * 2**20 + PDU_SPARE:
            return f"an object is larger than {self._options.max_object_mb:g} MB"
        if self._unchecked > SPACE_CHECK:
            self._unchecked = 0
            if not self.has_space():
                return "the disk is nearly full"
        self._receiver.progress(self.number)
        return ""


def received_syntaxes() -> list[str]:
    """Transfer syntaxes that a server takes, those without loss first: what can be read here, so that a peer sends nothing else."""
    lossless = sorted(JPEG_LOSSLESS) if importlib.util.find_spec("libjpeg") else []
    jpeg_2000 = sorted(JPEG_2000) if importlib.util.find_spec("openjpeg") else []
    jpeg_ls = sorted(JPEG_LS) if importlib.util.find_spec("jpeg_ls") else []
    return [
        EXPLICIT,
        IMPLICIT,
        DEFLATED,
        BIG_ENDIAN,
        RLE,
        *jpeg_ls,
        *lossless,
        *jpeg_2000,
        JPEG_BASELINE,
        JPEG_EXTENDED,
    ]


def _hang_up(connected: socket.socket | None) -> None:
    if connected is not None:
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server of this host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
