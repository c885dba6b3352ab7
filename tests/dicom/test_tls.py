"""Test that TLS takes the right files and the right peers, and says what is wrong with others."""

from __future__ import annotations

import shlex
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from synboost_monai.dicom.network.receive import StorageServer
from synboost_monai.dicom.network.send import Destination, NotReachableError, send_files
from synboost_monai.dicom.network.tls import Tls, reason_of
from tests.dicom.conftest import moving_frames
from tests.dicom.serving import serving, wait_for


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the PEM files of an authority, a certificate and its key."""
    return issued(tmp_path_factory.mktemp("tls"))


def issued(folder: Path) -> dict[str, str]:
    """Make an authority, a certificate and its key."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "authorities.pem")
    own.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    own.private_key_pem.write_to_path(folder / "key.pem")
    return {name: str(folder / f"{name}.pem") for name in ("certificate", "key", "authorities")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"use": "yes"}, "tls must be none, listen, send, both, got 'yes'"),
        ({"use": "listen"}, "tls listen needs a certificate to show to peers"),
        ({"use": "both", "certificate": "a.pem"}, "a certificate and its key belong together"),
        ({"use": "none", "authorities": "a.pem"}, "but tls is none; say tls listen, send or both"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tls(**given)


def test_wrong_files_are_refused_by_name(files: dict[str, str], tmp_path: Path) -> None:
    other = trustme.CA().issue_cert("127.0.0.1")
    (tmp_path / "other.pem").write_bytes(other.private_key_pem.bytes())
    (tmp_path / "text.pem").write_text("no certificate")
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(files["key"]).read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "encrypted.pem").write_bytes(key.private_bytes(*form, secret))
    for changed, kind, message in (
        ({"key": str(tmp_path / "other.pem")}, ValueError, "expected a certificate and its own private key"),
        (
            {"key": str(tmp_path / "encrypted.pem")},
            ValueError,
            "private key, not encrypted",
        ),  # and nobody is asked for a password
        ({"certificate": str(tmp_path / "text.pem")}, ValueError, "text.pem, .*expected a certificate"),
        ({"authorities": str(tmp_path / "text.pem")}, ValueError, "text.pem: expected certificates of authorities"),
        ({"authorities": str(tmp_path / "none.pem")}, FileNotFoundError, "none.pem: no such file"),
    ):
        with pytest.raises(kind, match=message):
            Tls("both", **{**files, **changed}).server_context()


def test_contexts_are_strict(files: dict[str, str]) -> None:
    assert Tls().server_context() is None and Tls().client_context() is None
    for context in (Tls("both", **files).server_context(), Tls("send", **files).client_context()):
        assert context is not None and context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.verify_mode == ssl.CERT_REQUIRED
    client = Tls("send").client_context()
    assert client is not None and client.check_hostname and client.verify_mode == ssl.CERT_REQUIRED
    without = {key: files[key] for key in ("certificate", "key")}
    open_to_all = Tls("listen", **without).server_context()
    assert open_to_all is not None and open_to_all.verify_mode == ssl.CERT_NONE


def test_reasons_are_plain_words() -> None:
    error = ssl.SSLError(1, "x")
    error.reason = "WRONG_VERSION_NUMBER"
    assert reason_of(error) == "it does not speak TLS"
    error.reason = "SOMETHING_NEW"
    assert reason_of(error) == "the TLS handshake failed (something new)"
    assert reason_of(TimeoutError()) == "it did not finish the TLS handshake in time"
    assert reason_of(ConnectionResetError()) == "it ended the TLS handshake"


# ---- connections


@pytest.fixture
def clip(make_ultrasound: Callable[..., Path]) -> Path:
    return make_ultrasound(moving_frames())


def _send(path: Path, server: StorageServer, tls: Tls, host: str = "127.0.0.1") -> list[str]:
    destination = Destination("SYNBOOST", host, server.port, tls)
    return [reason for _, reason in send_files([path], destination, "SCANNER", path.parent / "scratch", timeout=5)]


def test_objects_come_over_tls_though_others_say_nothing(files: dict[str, str], tmp_path: Path, clip: Path) -> None:
    with serving(tmp_path, timeout=5, tls=Tls("listen", **files)) as (server, said, shelf):
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        began = time.monotonic()
        assert _send(clip, server, Tls("send", **files)) == [""]
        assert time.monotonic() - began < 4  # a silent peer has 5 seconds for its handshake
        for peer in silent:
            peer.close()
    assert len(shelf.stored) == 1 and not any("cut" in line and "certificate" in line for line in said)


@pytest.mark.parametrize(
    ("sender", "told", "words"),
    [
        ("plain", "nobody answers", "it does not speak TLS"),
        ("without certificate", "it may not take our certificate", "it showed no certificate"),
        ("other authority", "it may not take our certificate", "its certificate is not valid here"),
        (
            "does not know us",
            "no encrypted connection: its certificate is not valid here",
            "authority of our certificate",
        ),
    ],
)
def test_who_is_not_known_is_cut_off_and_both_sides_say_why(
    sender: str, told: str, words: str, files: dict[str, str], tmp_path: Path, clip: Path
) -> None:
    own = issued(tmp_path)
    tls = {
        "plain": Tls(),
        "without certificate": Tls("send", authorities=files["authorities"]),
        "other authority": Tls("send", **{**own, "authorities": files["authorities"]}),
        "does not know us": Tls("send", **own),
    }[sender]
    with serving(tmp_path, timeout=5, tls=Tls("listen", **files)) as (server, said, shelf):
        with pytest.raises(NotReachableError, match=told):
            _send(clip, server, tls)
        wait_for(lambda: any(words in line for line in said))
    assert shelf.stored == []


def test_a_certificate_for_another_host_is_refused(files: dict[str, str], tmp_path: Path, clip: Path) -> None:
    with serving(tmp_path, timeout=5, tls=Tls("listen", **files)) as (server, _, shelf):
        with pytest.raises(NotReachableError, match="no encrypted connection: its certificate is for another host"):
            _send(clip, server, Tls("send", **files), host="localhost")
    assert shelf.stored == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_certificate_that_the_page_makes_serves_both_sides(tmp_path: Path, clip: Path) -> None:
    page = Path(__file__).parents[2].joinpath("docs/hospital.md").read_text(encoding="utf-8")
    command = page[page.index("openssl req") :].partition("synboost listen")[0]
    words = shlex.split(command.replace("\\\n", " ").replace("10.1.0.5", "127.0.0.1"))
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    own = {"certificate": str(tmp_path / "certificate.pem"), "key": str(tmp_path / "key.pem")}
    listening = Tls("listen", **own, authorities=own["certificate"])
    with serving(tmp_path, timeout=5, tls=listening) as (server, _, shelf):
        assert _send(clip, server, Tls("send", **own, authorities=own["certificate"])) == [""]
    assert len(shelf.stored) == 1
