"""Parse the address of a DICOMweb service, and take the secrets for it from the environment; neither is ever shown."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from synboost_monai.dicom.network.common import is_loopback
from synboost_monai.dicom.network.tls import Tls

VARIABLES = "SYNBOOST_DICOMWEB_"
"""Start of the environment variables that hold secrets and certificates."""
EXAMPLE = "https://archive.example.org/dicom-web"
_SCHEMES = ("http", "https")
_PATH = re.compile(r"[A-Za-z0-9._~/-]*")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}")
_TOKEN = re.compile(r"[!-~]{1,16384}")
_TAG = re.compile(r"[0-9A-Fa-f]{8}")


@dataclass(frozen=True)
class WebAddress:
    """Hold the address of a DICOMweb service, and the attributes by which studies are searched there."""

    base: str
    """Scheme, host, port and path, without a slash at the end."""
    query: dict[str, list[str]] = field(default_factory=dict, repr=False)
    """Keyword or tag of an attribute -> wanted values, which may name a patient."""

    @classmethod
    def parse(cls, text: str, name: str, takes_query: bool = False) -> WebAddress:
        """Parse an address of the form `https://HOST[:PORT]/PATH[?ATTRIBUTE=VALUE&...]`.

        Args:
            text: the address.
            name: option that it was given by, for messages, which never repeat the address: it may hold a password or a name.
            takes_query: whether it may have a query.
        Raises:
            ValueError: if it has another form, holds a password, or asks for an attribute that there is not.
        """
        expected = f"expected an address such as {EXAMPLE}"
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise ValueError(f"{name} is not an address; {expected}") from error
        if "@" in parts.netloc:
            raise ValueError(
                f"{name} holds a user or a password, which others could read; "
                f"set {VARIABLES}TOKEN, or {VARIABLES}USER and {VARIABLES}PASSWORD in the environment"
            )
        is_host = _HOST.fullmatch(host) is not None or _is_address(host)
        if parts.scheme not in _SCHEMES or not is_host or not _PATH.fullmatch(parts.path) or parts.fragment:
            raise ValueError(f"{name} is not an address of a DICOMweb service; {expected}")
        if parts.query and not takes_query:
            raise ValueError(f"{name} has a query after its question mark, which has no meaning here; leave it out")
        shown = f"[{host}]" if ":" in host else host
        base = f"{parts.scheme}://{shown}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"
        return cls(base, _parsed_query(parts.query, name))

    @property
    def origin(self) -> tuple[str, str, int]:
        """Return scheme, host and port: what a secret is for."""
        parts = urlsplit(self.base)
        return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]

    @property
    def is_encrypted(self) -> bool:
        """Return whether connections to it are encrypted."""
        return self.base.startswith("https:")

    @property
    def is_of_this_machine(self) -> bool:
        """Return whether it is on this machine, so that nothing passes a network."""
        return is_loopback(self.origin[1])


@dataclass(frozen=True)
class Access:
    """Hold how we identify ourselves to a DICOMweb service, and how it identifies itself to us."""

    token: str = field(default="", repr=False)
    """Token of OAuth 2, sent as `Authorization: Bearer`."""
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    tls: Tls = field(default_factory=Tls)
    variables: str = VARIABLES
    """Start of the names of the environment variables, for messages."""

    @classmethod
    def of_environment(cls, address: WebAddress, variables: str = VARIABLES) -> Access:
        """Take what is for a service from environment variables; secrets are removed from there, so that no child process sees them.

        Raises:
            ValueError: if what is there does not go together, or a secret would pass a network unencrypted.
            FileNotFoundError: if there is no such file of certificates.
        """
        token, user, password = (os.environ.pop(variables + name, "") for name in ("TOKEN", "USER", "PASSWORD"))
        certificate, key, authorities = (
            os.environ.get(variables + name) or None for name in ("CERTIFICATE", "KEY", "AUTHORITIES")
        )
        if token and not _TOKEN.fullmatch(token):
            raise ValueError(f"{variables}TOKEN must be one word of printable ASCII letters")
        if bool(user) != bool(password) or ":" in user:
            raise ValueError(f"{variables}USER and {variables}PASSWORD belong together, and the user has no colon")
        if token and user:
            raise ValueError(f"set {variables}TOKEN, or {variables}USER and {variables}PASSWORD, but not both")
        if (certificate is None) != (key is None):
            raise ValueError(f"{variables}CERTIFICATE and {variables}KEY belong together; set both or neither")
        if (token or user) and not (address.is_encrypted or address.is_of_this_machine):
            raise ValueError(
                f"{variables}{'TOKEN' if token else 'PASSWORD'} would pass the network unencrypted; give an address with https://"
            )
        tls = Tls("send", certificate, key, authorities) if address.is_encrypted else Tls()
        tls.client_context()  # a wrong file is an error now, not at the first request
        return cls(token, user, password, tls, variables)


def is_web(text: str) -> bool:
    """Return whether a destination is meant as a DICOMweb service, and not as TITLE@HOST:PORT."""
    return "://" in text


def _parsed_query(text: str, name: str) -> dict[str, list[str]]:
    """Return the attributes of a query; a misspelt one is refused, since a service may ignore it, and then it would give everything."""
    from pydicom.datadict import tag_for_keyword

    query: dict[str, list[str]] = {}
    for key, value in parse_qsl(text, keep_blank_values=True, max_num_fields=100, encoding="utf-8", errors="replace"):
        if not (_TAG.fullmatch(key) or tag_for_keyword(key) is not None):
            raise ValueError(
                f"the query of {name} has an attribute that DICOM does not know; expected keywords such as StudyDate, "
                "PatientID or ModalitiesInStudy, or tags of eight digits"
            )
        query.setdefault(key, []).append(value)
    return query


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
