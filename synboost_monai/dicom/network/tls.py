"""Encrypt connections between DICOM nodes with TLS 1.2 or 1.3, and say in plain words why one fails (DICOM PS3.15, B.1 to B.12)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USES = ("none", "listen", "send", "both")
"""Which connections are encrypted: those of peers, those to the destination, or both."""
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
    "HTTPS_PROXY_REQUEST": "it does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it speaks an old version of TLS; 1.2 and 1.3 are taken",
    "UNKNOWN_CA": "it does not know the authority of our certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority of our certificate",
    "CERTIFICATE_REQUIRED": "it demands a certificate of ours",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it demands a certificate of ours",
}
"""OpenSSL's name of an error -> its meaning."""
_OTHER_HOST = (62, 64)
"""OpenSSL's codes for a certificate without the host's name, or without its address."""


@dataclass(frozen=True)
class Tls:
    """Hold whose connections are encrypted, and with which files in PEM format.

    Raises:
        ValueError: if the files do not suffice for what is wanted.
    """

    use: str = "none"
    """One of `USES`."""
    certificate: str | None = None
    """File of the node's own certificate, followed by those between it and its authority."""
    key: str | None = None
    """File of its private key, not encrypted."""
    authorities: str | None = None
    """File of the authorities whose certificates peers and destination must have; None: any peer, and the system's authorities."""

    def __post_init__(self) -> None:
        if self.use not in USES:
            raise ValueError(f"tls must be {', '.join(USES)}, got {self.use!r}")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a certificate and its key belong together: give tls_certificate and tls_key, or neither")
        if self.is_server and self.certificate is None:
            raise ValueError(f"tls {self.use} needs a certificate to show to peers: give tls_certificate and tls_key")
        if self.use == "none" and (self.certificate or self.authorities):
            raise ValueError("there is a certificate or an authority, but tls is none; say tls listen, send or both")

    @property
    def is_server(self) -> bool:
        """Return whether connections of peers are encrypted."""
        return self.use in ("listen", "both")

    @property
    def is_client(self) -> bool:
        """Return whether connections to the destination are encrypted."""
        return self.use in ("send", "both")

    def server_context(self) -> ssl.SSLContext | None:
        """Return the context for connections of peers, who must show a certificate if there are authorities; None without TLS.

        Raises:
            FileNotFoundError, ValueError: if a file is missing or cannot be used.
        """
        if not self.is_server:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load(context)
        if self.authorities is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(self) -> ClientContext | None:
        """Return the context for connections to the destination, whose certificate must name its host; None without TLS.

        Raises:
            FileNotFoundError, ValueError: if a file is missing or cannot be used.
        """
        if not self.is_client:
            return None
        context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)  # which demands a certificate and checks the name in it
        self._load(context)
        if self.authorities is None:
            context.load_default_certs()
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        """Load the files into a context."""
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for path in filter(None, (self.certificate, self.key, self.authorities)):
            if not Path(path).is_file():
                raise FileNotFoundError(f"{path}: no such file; expected certificates or a key in PEM format")
        try:
            if self.authorities is not None:
                context.load_verify_locations(self.authorities)
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"{self.authorities}: expected certificates of authorities in PEM format") from error
        try:
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(
                f"{self.certificate}, {self.key}: expected a certificate and its own private key, not encrypted, in PEM format"
            ) from error


ENDED = "the destination ended it at once; it may not take our certificate"
"""Reason for which an encrypted connection has no association, if no other one is known."""


class _Socket(ssl.SSLSocket):
    """Keep the reason for which a connection was not made, which pynetdicom only logs."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except ssl.SSLError as error:
            self.context.problem = reason_of(error)  # type: ignore[attr-defined]
            raise
        self.context.problem = ENDED  # type: ignore[attr-defined]  # with TLS 1.3 a refusal comes after the handshake


class ClientContext(ssl.SSLContext):
    """Make encrypted connections, and keep why the last one failed."""

    problem = ""
    sslsocket_class = _Socket


def reason_of(error: Exception) -> str:
    """Say in plain words why a connection was not encrypted; nothing that the peer chose is repeated."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _OTHER_HOST:
            return "its certificate is for another host"
        return f"its certificate is not valid here ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return "it did not finish the TLS handshake in time"
    if isinstance(error, ssl.SSLEOFError) or isinstance(error, ConnectionError):
        return "it ended the TLS handshake"
    reason = getattr(error, "reason", None) or ""
    return _REASONS.get(reason, f"the TLS handshake failed ({reason.replace('_', ' ').lower() or 'no reason given'})")


def _no_password(*_: Any) -> bytes:
    """Refuse an encrypted key; without this, OpenSSL would ask on the terminal."""
    raise ValueError("the key is encrypted")
