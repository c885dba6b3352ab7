"""Receive DICOM objects over the network, by C-STORE, into files.

Only ultrasound images (and C-ECHO) are accepted, only from listed peers and AE titles. Data are written straight into files, so
memory stays flat; sizes and times are bounded, whatever a peer sends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from synboost_monai.dicom.network.common import SPACE_CHECK, Status, check_title, is_loopback
from synboost_monai.dicom.network.guard import (
    MAX_WAITING,
    NEGOTIATION_SECONDS,
    NOT_ALLOWED,
    NOT_RECOGNISED,
    TOO_MANY,
    Incoming,
    Patience,
    RefusalLog,
    RefusedError,
    rejected,
)
from synboost_monai.dicom.network.tls import Tls, reason_of
from synboost_monai.dicom.reading.files import Closing
from synboost_monai.dicom.reading.video import VIDEO, video_decoder
from synboost_monai.dicom.uids import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG_2000,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LS,
    RLE,
    ULTRASOUND_CLASSES,
)
from synboost_monai.paths import remove_own_folder

VERIFICATION = "1.2.840.10008.1.1"
"""SOP class of C-ECHO."""
RECEIVE_BYTES = 1 << 16
"""Most bytes requested from a socket at a time."""
BACKLOG = 128
"""Connections that the system queues until they are accepted; with pynetdicom's 5, a few refused ones would keep out the others."""
LATER = 5.0
"""Seconds after a connection's time-out at which pynetdicom would end it, too; and that a peer has to hang up after a release or abort."""
_A_REJECT, _P_DATA, _A_RELEASED, _A_ABORT = 3, 4, 6, 7


class Receiver(Protocol):
    """Handle the objects that a server receives; called from several threads at a time."""

    def store(self, path: Path, sop_instance_uid: str, connection: int) -> Status:
        """Take a whole object that has come; move the file away to keep it, else it is removed.

        Args:
            path: path of a DICOM file.
            sop_instance_uid: as the request gives it.
            connection: number of the connection that it came over.
        """

    def progress(self, connection: int) -> None:
        """Note that a part of an object has come."""

    def closed(self, connection: int) -> None:
        """Note that a connection has ended."""


@dataclass(frozen=True)
class ServerOptions:
    """Hold the options of a server: which peers may send to it, and what it accepts."""

    host: str = "127.0.0.1"
    port: int = 11112
    """Port to listen on; 0 for any free port."""
    ae_title: str = "SYNBOOST"
    allowed_titles: tuple[str, ...] = ()
    """AE titles of peers; empty: any, which is allowed only on loopback."""
    allowed_peers: tuple[str, ...] = ()
    """Addresses or networks (10.1.0.0/16) of peers; empty: only this machine."""
    max_pdu: int = 1 << 17
    """Largest protocol data unit, in bytes."""
    max_object_mb: float = 4096
    """Largest object, in MB (2^20 bytes); the connection is cut if an object is larger."""
    min_free_mb: float = 1024
    """MB (2^20 bytes) that stay free on the disk."""
    max_connections: int = 16
    """Most connections at a time; one address may have half of them, so that others get through."""
    timeout: float = 60
    """Seconds that a peer may be silent or too slow."""
    tls: Tls = field(default_factory=Tls)
    """How connections of peers are encrypted."""

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

    @property
    def max_of_peer(self) -> int:
        """Most connections of one address at a time."""
        return (self.max_connections + 1) // 2

    def is_peer(self, address: str) -> bool:
        """Return whether a machine may connect."""
        try:
            ip = ipaddress.ip_address(address.split("%")[0])
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not self.allowed_peers:
            return ip.is_loopback
        return any(ip in ipaddress.ip_network(peer, strict=False) for peer in self.allowed_peers)


class StorageServer(Closing):
    """Run a C-STORE SCP; use it in `with`, inside `quiet_network`.

    Args:
        receiver: handles the objects.
        folder: for objects that are being received; emptied first. It must be on the same disk as the place where `receiver` puts them.
        options: which peers and objects are accepted.
        say: called with one line whenever something is refused.
    Raises:
        OSError: if the port is taken, or the address is not one of this machine.
    """

    def __init__(self, receiver: Receiver, folder: Path, options: ServerOptions, say: Callable[[str], None]) -> None:
        from pynetdicom import AE, evt

        self._receiver, self._folder, self._options = receiver, folder, options
        self._tell = RefusalLog(say)
        remove_own_folder(folder)
        folder.mkdir(parents=True)
        self._connections: dict[tuple[str, int], _Connection] = {}
        self._lock = threading.Lock()
        self._tls = options.tls.server_context()
        entity = AE(ae_title=options.ae_title)
        entity.maximum_pdu_size = options.max_pdu
        # this class counts, with bare connections apart
        entity.maximum_associations = 2 * options.max_connections + 100
        entity.acse_timeout = options.timeout + LATER  # `Patience` ends it earlier
        entity.dimse_timeout = options.timeout
        entity.network_timeout = None
        entity.add_supported_context(VERIFICATION)
        for sop_class in sorted(ULTRASOUND_CLASSES):
            entity.add_supported_context(sop_class, received_syntaxes())
        self._entity = entity
        self._temporary_before = tempfile.tempdir
        tempfile.tempdir = str(folder)  # pynetdicom writes received data here
        try:
            self._server = entity.start_server(
                (options.host, options.port),
                block=False,
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, self._on_open),
                    (evt.EVT_CONN_CLOSE, self._on_close),
                    (evt.EVT_ACCEPTED, self._on_accepted),
                    (evt.EVT_C_STORE, self._on_store),
                ],
            )
        except BaseException:
            tempfile.tempdir = self._temporary_before
            raise
        assert self._server is not None and self._server.socket is not None
        self._server.socket.listen(BACKLOG)
        self._server.verify_request = self._may_connect  # type: ignore[method-assign]  # before it costs two threads
        self._is_closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="network-watch", daemon=True)
        self._watcher.start()

    @property
    def port(self) -> int:
        """Port that the server listens on."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def close(self, grace: float = 10) -> None:
        """Take no new connections, give open ones `grace` seconds to end, then cut them."""
        assert self._server is not None
        with contextlib.suppress(Exception):
            self._server.shutdown()
        end = time.monotonic() + grace
        while self._entity.active_associations and time.monotonic() < end:
            time.sleep(0.05)
        with contextlib.suppress(Exception):
            self._entity.shutdown()
        self._is_closing.set()
        self._watcher.join(grace)
        tempfile.tempdir = self._temporary_before

    # --- admission ----------------------------------------------------------------------------------------------------

    def _may_connect(self, request: Any, client_address: Any) -> bool:
        """Return whether a peer may ask for an association at all."""
        address = str(client_address[0])
        if not self._options.is_peer(address):
            self._tell(f"a connection from {address} was refused: its address is not allowed")
            return False
        with self._lock:
            asking = [c.address for c in self._connections.values() if not (c.incoming.is_admitted or c.is_ending)]
            of_peer = sum(c.address == address for c in self._connections.values())
        is_full = len(asking) >= self._options.max_connections or asking.count(address) >= self._options.max_of_peer
        if of_peer >= 3 * self._options.max_of_peer:
            self._tell(f"a connection from {address} was refused: it leaves too many open that are over")
            return False
        if is_full:
            self._tell(
                f"a connection from {address} was refused: too many are open that have not asked for anything yet"
            )
            return False
        return True

    def _admit(self, connection: _Connection, called: str, calling: str) -> None:
        """Let a peer in, or turn it away."""
        if called != self._options.ae_title.strip():
            raise rejected("it called another AE title", NOT_RECOGNISED)
        if self._options.allowed_titles and calling not in {title.strip() for title in self._options.allowed_titles}:
            raise rejected("its AE title is not allowed", NOT_ALLOWED)
        with self._lock:
            admitted = [c for c in self._connections.values() if c.incoming.is_admitted and not c.is_ending]
            of_peer = sum(c.address == connection.address for c in admitted)
            if len(admitted) >= self._options.max_connections:
                raise rejected("there are too many connections", TOO_MANY)
            if of_peer >= self._options.max_of_peer:
                raise rejected("there are too many connections of its address", TOO_MANY)
            connection.incoming.is_admitted = True

    def _on_open(self, event: Any) -> None:
        """Watch a peer that has connected: its data are checked before pynetdicom reads them."""
        association, wrapped = event.assoc, event.assoc.dul.socket
        address = str(event.address[0])
        if not self._may_connect(None, event.address):
            _hang_up(wrapped.socket)
            return
        wrapped.socket.settimeout(self._options.timeout + LATER)
        connection = _Connection(self, association, wrapped.socket, address)
        with self._lock:
            self._connections[event.address[:2]] = connection
        wrapped.recv, wrapped.send = connection.receive, connection.sending(wrapped.send)
        machine, negotiation = association.dul.state_machine, association.acse
        machine.do_action = connection.guarding(machine.do_action)
        negotiation.negotiate_association = connection.guarding(negotiation.negotiate_association)
        association._run_reactor = connection.guarding(association._run_reactor)
        if self._tls is not None:
            connection.encrypt(self._tls, wrapped)  # in this thread, which is the peer's own

    def _on_accepted(self, event: Any) -> None:
        """Report an accepted association that has no usable presentation context."""
        if not event.assoc.accepted_contexts:
            address = event.assoc.requestor.address
            self._tell(f"an association with {address} is of no use: nothing of what it offers is taken here")

    # --- end of connections -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Cut connections whose time is over, whatever they are doing, and forget those that ended without notice."""
        while not self._is_closing.wait(min(1.0, self._options.timeout / 4)):
            with self._lock:
                connections = list(self._connections.values())
            for connection in connections:
                association = connection.association
                if association.ident is not None and not association.is_alive():
                    _hang_up(connection.socket)
                    self._forget(association)
                elif connection.patience.is_out and connection.is_ending:
                    _hang_up(connection.socket)
                elif connection.patience.is_out:
                    asking = "in the middle of" if connection.incoming.is_admitted else "before"
                    connection.cut(f"it was silent or too slow, {asking} its association")

    def _on_close(self, event: Any) -> None:
        self._forget(event.assoc)

    def _forget(self, association: Any) -> None:
        """Forget a connection that has ended, and remove an incomplete object."""
        with self._lock:
            keys = [key for key, one in self._connections.items() if one.association is association]
            connection = self._connections.pop(keys[0]) if keys else None
        if connection is None:
            return
        self._receiver.closed(connection.number)
        if not connection.incoming.is_admitted:
            association.dul.to_user_queue.put(None)  # else its thread would wait for the request
        message = association.dimse.message
        path = getattr(message, "_data_set_path", None)
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                message._data_set_file.close()
            with contextlib.suppress(OSError):
                os.unlink(path)
            self._tell(f"a connection of {connection.address} ended in the middle of an object, which was not kept")
        elif connection.incoming.is_aborted:
            self._tell(f"an association was aborted by {connection.address} itself")

    # --- storing ------------------------------------------------------------------------------------------------------

    def _on_store(self, event: Any) -> int:
        """Store a whole object, and return the status for the peer."""
        with self._lock:
            connection = next((c for c in self._connections.values() if c.association is event.assoc), None)
        if connection is None:
            return Status.CANNOT_UNDERSTAND
        status = Status.OUT_OF_RESOURCES
        try:
            if str(event.request.AffectedSOPClassUID) != str(event.context.abstract_syntax):
                status = Status.MISMATCH
            elif not self.has_space():
                self._tell("an object was refused: the disk is nearly full")
                return status
            else:
                uid = str(event.request.AffectedSOPInstanceUID)
                status = self._receiver.store(Path(event.dataset_path), uid, connection.number)
        except Exception as error:  # noqa: BLE001  pynetdicom would print it, and it may hold anything of the object
            problem = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else "unforeseen"
            self._tell(f"an object could not be kept: {problem}")
            return status
        if status == Status.SUCCESS:
            connection.patience.refill()
        else:
            self._tell(f"an object of {connection.address} was refused: {_WHY[status]}")
        return status

    def has_space(self) -> bool:
        """Return whether the disk has room for more."""
        return shutil.disk_usage(self._folder).free >= self._options.min_free_mb * 2**20


_WHY = {
    Status.MISMATCH: "it is not what its request says",
    Status.CANNOT_UNDERSTAND: "its identifiers cannot be read",
    Status.OUT_OF_RESOURCES: "there is no room for more",
}


class _Connection:
    """The connection of one peer; all data from it pass through here."""

    _count = 0
    _count_lock = threading.Lock()

    def __init__(self, server: StorageServer, association: Any, connected: socket.socket, address: str) -> None:
        with self._count_lock:
            _Connection._count += 1
            self.number = _Connection._count
        options = server._options
        self._server, self.association, self.socket, self.address = server, association, connected, address
        self.patience = Patience(min(options.timeout, NEGOTIATION_SECONDS))
        self.incoming = Incoming(options.max_pdu, options.max_object_mb, self._admit)
        self.is_cut = False
        self.is_ending = False
        """Whether it no longer counts towards the limits: it is cut, released, or closed by the peer."""
        self._unchecked = 0
        self._num_waiting = 0

    def encrypt(self, context: ssl.SSLContext, wrapped: Any) -> None:
        """Begin TLS; a peer that fails, or is not done in the time that a request may take, is cut off."""
        try:
            self.socket.settimeout(min(self._server._options.timeout, NEGOTIATION_SECONDS))  # for all of the handshake
            encrypted = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self.socket = wrapped.socket = encrypted
            encrypted.do_handshake()
            encrypted.settimeout(self._server._options.timeout + LATER)
        except (OSError, ValueError) as error:
            if not self.is_cut:
                self.cut(reason_of(error))

    def _admit(self, called: str, calling: str) -> None:
        self._server._admit(self, called, calling)
        self.patience.refill(self._server._options.timeout)

    def receive(self, count: int) -> bytearray:
        """Return `count` bytes, fewer if the connection ends; this replaces pynetdicom's own method.

        Raises:
            OSError: if the data are refused; pynetdicom then treats the connection as lost.
        """
        if self.is_cut:
            raise OSError("the connection was cut")
        data = bytearray(count)
        with memoryview(data) as view:
            start = 0
            while start < count:
                got = self.socket.recv_into(view[start:], min(count - start, RECEIVE_BYTES))
                if not got:
                    self.is_ending = True
                    break
                start += got
                if self.incoming.is_admitted:
                    self.patience.earn(got)
        del data[start:]
        if start == count:
            try:
                self._look_at(data)
            except RefusedError as refused:
                self.cut(str(refused), refused.answer)
                raise OSError(str(refused)) from refused
        return data

    def _look_at(self, data: bytearray) -> None:
        num_whole = self.incoming.take(data)
        self._unchecked += len(data)
        if self._unchecked > SPACE_CHECK:
            self._unchecked = 0
            if not self._server.has_space():
                raise RefusedError("the disk is nearly full")
        self._server._receiver.progress(self.number)
        if num_whole:
            self._num_waiting += num_whole
            if self._num_waiting > MAX_WAITING:
                raise RefusedError("it does not wait for answers")
            self.patience.pause()

    def sending(self, send: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """Wrap pynetdicom's send function to watch the answers."""

        def watched(data: bytes) -> None:
            if data[0] in (_A_RELEASED, _A_ABORT):
                self.is_ending = True
                self.patience.refill(LATER)
            self.patience.resume()  # a peer that does not read answers uses up its time, too
            if data[0] == _A_ABORT and not self.is_cut:
                self._server._tell(f"an association with {self.address} was aborted: what it sent could not be taken")
            send(data)
            if data[0] == _P_DATA:
                self._num_waiting = max(self._num_waiting - 1, 0)
                if self._num_waiting:
                    self.patience.pause()

        return watched

    def guarding(self, act: Callable[..., None]) -> Callable[..., None]:
        """Wrap a method of pynetdicom that raises, with a traceback, if a peer sends or does something unforeseen."""

        def guarded(*arguments: Any) -> None:
            try:
                act(*arguments)
            except Exception as error:  # noqa: BLE001  whatever it is, this connection is over
                if not self.is_ending:
                    number = error.errno if isinstance(error, OSError) else None
                    self.cut(
                        os.strerror(number).lower() if number else "what it sent is damaged or came at a wrong time"
                    )
                self.association.dul.kill_dul()

        return guarded

    def cut(self, problem: str, answer: bytes = b"") -> None:
        """End the connection, and report the problem in one line."""
        self.is_cut = self.is_ending = True
        is_rejected = bool(answer) and answer[0] == _A_REJECT
        what = "an association with {} was refused" if is_rejected else "the connection of {} was cut"
        self._server._tell(f"{what.format(self.address)}: {problem}")
        if answer:
            with contextlib.suppress(OSError, ValueError):
                self.socket.settimeout(1)
                self.socket.sendall(answer)
        _hang_up(self.socket)


def received_syntaxes() -> list[str]:
    """Return the transfer syntaxes that a server accepts, lossless ones first: only those that can be decoded here."""
    syntaxes = [EXPLICIT, IMPLICIT, DEFLATED, BIG_ENDIAN, RLE]
    for module, decoded in (("jpeg_ls", JPEG_LS), ("libjpeg", JPEG_LOSSLESS), ("openjpeg", JPEG_2000)):
        if importlib.util.find_spec(module):
            syntaxes += sorted(decoded)
    video = [syntax + end for syntax in VIDEO for end in ("", ".1")] if video_decoder() else []
    return [*syntaxes, JPEG_BASELINE, JPEG_EXTENDED, *video]


def _hang_up(connected: socket.socket | None) -> None:
    if connected is not None:
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)
