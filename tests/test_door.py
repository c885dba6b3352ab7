"""Test who may use a server: tokens, and the server's own names."""

from __future__ import annotations

import ipaddress
import re

import pytest

from synboost_monai.door import addresses_of, checked_token, own_hosts

TOKEN = "0123456789abcdef-token"
VARIABLE = "SYNBOOST_TOKEN_OF_A_TEST"


@pytest.mark.parametrize(
    ("token", "variable", "is_needed", "expected"),
    [
        (None, None, False, None),
        (None, None, True, r"[A-Za-z0-9_-]{32}"),
        (True, None, False, r"[A-Za-z0-9_-]{32}"),
        (False, None, False, None),
        (False, None, True, r"[A-Za-z0-9_-]{32}"),
        (TOKEN, None, False, TOKEN),
        (TOKEN, "another-token-here", True, TOKEN),
        (None, TOKEN, False, TOKEN),
        (True, TOKEN, False, TOKEN),
    ],
)
def test_token(monkeypatch, token, variable, is_needed, expected) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if variable:
        monkeypatch.setenv(VARIABLE, variable)
    found = checked_token(token, VARIABLE, is_needed=is_needed)
    assert found is None if expected is None else re.fullmatch(expected, str(found))


@pytest.mark.parametrize("token", ["short", "with a space in it", "a/path/that/goes/on", "$" * 20])
def test_token_that_is_none_is_refused(token) -> None:
    with pytest.raises(ValueError, match="a token has 16 to 128") as caught:
        checked_token(token, VARIABLE, is_needed=True)
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "port", "address", "inside", "outside"),
    [
        ("127.0.0.1", 8000, "127.0.0.1", {"127.0.0.1:8000", "localhost:8000", "[::1]:8000"}, {"127.0.0.1"}),
        ("::1", 80, "::1", {"[::1]:80", "[::1]", "localhost"}, {"::1"}),
        ("192.0.2.7", 8000, "192.0.2.7", {"192.0.2.7:8000"}, {"localhost:8000"}),
        ("GPU1", 8000, "192.0.2.7", {"gpu1:8000"}, {"192.0.2.8:8000"}),
        ("0.0.0.0", 8000, "0.0.0.0", {"127.0.0.1:8000"}, {"evil.example:8000"}),
    ],
)
def test_own_hosts(host, port, address, inside, outside) -> None:
    hosts = own_hosts(host, port, [ipaddress.ip_address(address)])
    assert inside <= hosts and not outside & hosts


def test_host_and_port_must_be_some() -> None:
    assert all(address.is_loopback for address in addresses_of("localhost", 8000))
    for host, port, said in (
        ("127.0.0.1", 0, "--port must be 1 to 65535, got 0"),
        ("not a host", 80, "--host must be"),
    ):
        with pytest.raises(ValueError, match=said):
            addresses_of(host, port)
