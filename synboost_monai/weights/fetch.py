"""Fetch public weights: the only network access of the project.

Nothing is fetched without a SHA-256 to check it: if the table has none, the reader of the source page passes it, or fetches by hand.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from synboost_monai import __version__
from synboost_monai.files import sha256_of
from synboost_monai.weights.table import PublicWeights, find_weights

TIMEOUT_S = 60.0
"""Seconds without an answer after which a download counts as broken."""
_BLOCK_BYTES = 1 << 20
"""Number of bytes that are read at a time."""


def get_weights(name: str, output: str | os.PathLike[str], sha256: str | None = None) -> Path:
    """Fetch published weights, checked by size and SHA-256; the one function of the project that opens a connection.

    Bytes are counted as they come, whatever number the server announces: no more than the entry's size, or 4 GB, reach the disk.
    An interrupted download goes on where it stopped, if the server allows that. Proxies come from the environment, as urllib reads it.

    Args:
        name: of an entry of `WEIGHTS`.
        output: a file to write, or a folder for a file with the publisher's name.
        sha256: 64 hexadecimal digits, as the source page states them, for an entry whose hash is not known here.
    Returns:
        the file; one that is already there with the right hash is left as it is.
    Raises:
        ValueError: if the entry does not exist, or has no address or no hash; if the connection fails, or the file is a wrong one.
    """
    entry = find_weights(name)
    expected = _expected_sha256(entry, sha256)
    if entry.url is None or expected is None:
        missing = "no address that a program can fetch from" if entry.url is None else "no known SHA-256 to check it by"
        raise ValueError(f"{name} has {missing}; {entry.how} (licence: {entry.licence}; page: {entry.page})")
    path = Path(output)
    if path.is_dir() or str(output).endswith(("/", os.sep)):
        path = path / entry.file_name
    if path.exists():
        if path.is_file() and sha256_of(path) == expected:
            return path
        raise ValueError(f"{path} is there already and is not {name}; name another file, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"{entry.title}\nlicence: {entry.licence}\npage: {entry.page}\nsize: {entry.size}", flush=True)
    partial = path.with_name(f".{path.name}.partial")
    if partial.is_symlink() or (partial.exists() and not partial.is_file()):
        raise ValueError(f"{partial} is there already and is no plain file; remove it")
    _download(entry, partial, path)
    found = sha256_of(partial)
    if found != expected:
        partial.unlink()
        raise ValueError(
            f"{name} has SHA-256 {found}, expected {expected}; the file was damaged on its way or replaced, and is removed: "
            f"try again, or see {entry.page}"
        )
    os.replace(partial, path)
    return path


def _expected_sha256(entry: PublicWeights, given: str | None) -> str | None:
    """Return the hash to check a file with: the table's, or the one that the user read on the page."""
    if given is None:
        return entry.sha256
    digits = given.strip().lower().removeprefix("sha256:")
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise ValueError(f"--sha256 must be 64 hexadecimal digits, got {given!r}; copy it from {entry.page}")
    if entry.sha256 is not None and digits != entry.sha256:
        raise ValueError(f"the SHA-256 of {entry.name} is {entry.sha256}, not {digits}; leave --sha256 out")
    return digits


def _download(entry: PublicWeights, partial: Path, path: Path) -> None:
    """Download an entry's file into `partial`, from where that ends; stop if the size is wrong."""
    from tqdm import tqdm

    assert entry.url is not None
    start = partial.stat().st_size if partial.exists() else 0
    if start >= entry.max_bytes:
        if start == entry.num_bytes:
            return  # only the check was interrupted
        partial.unlink()
        start = 0
    try:
        with _open(entry.url, start) as response:
            goes_on = response.status == http.client.PARTIAL_CONTENT
            start = start if goes_on else 0
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdigit() else entry.num_bytes
            if entry.num_bytes is not None and total not in (None, entry.num_bytes):
                raise ValueError(
                    f"{entry.url} has {total:,} bytes, expected {entry.num_bytes:,}: it is another file; see {entry.page}"
                )
            if total is not None and total > entry.max_bytes:
                partial.unlink(missing_ok=True)
                raise ValueError(_too_long(entry))
            bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=entry.name, dynamic_ncols=True)
            with bar, open(partial, "ab" if goes_on else "wb", opener=_open_here) as file:
                num_found = start
                while block := response.read(_BLOCK_BYTES):
                    num_found += len(block)
                    if num_found > entry.max_bytes:
                        partial.unlink()
                        raise ValueError(_too_long(entry))
                    file.write(block)
                    bar.update(len(block))
            if total is not None and num_found < total:
                raise http.client.IncompleteRead(b"", total - num_found)
    except urllib.error.HTTPError as error:
        raise ValueError(
            f"{entry.url} answers {error.code} ({error.reason}); by hand: {entry.by_hand}, and save it as {path}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        if partial.exists() and partial.stat().st_size == 0:
            partial.unlink()
        reason = getattr(error, "reason", error) or type(error).__name__
        kept = (
            f"; {partial.stat().st_size:,} bytes are kept, the same command goes on from there"
            if partial.exists()
            else ""
        )
        raise ValueError(
            f"cannot fetch {entry.name} from {urlsplit(entry.url).hostname} ({reason}){kept}; check the connection and the "
            f"proxy (HTTPS_PROXY), or fetch {entry.url} on another machine and save it as {path}"
        ) from error


def _too_long(entry: PublicWeights) -> str:
    """Return the message for an answer that has more bytes than any file of the entry."""
    return f"{entry.url} has more than {entry.max_bytes:,} bytes: it is another file, and nothing of it is kept; see {entry.page}"


def _open_here(path: str, flags: int) -> int:
    """Open a file for `open`, but not through a symbolic link."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow an answer that names another address, but from https only to https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request for another address.

        Raises:
            ValueError: if that address is less safe than the first.
        """
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise ValueError(f"{req.full_url} leads to {newurl}, which is not https; nothing is fetched from there")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, start: int) -> Any:
    """Open an answer for `url` from byte `start` on, or from 0 if the server cannot go on there."""
    headers = {"User-Agent": f"synboost-monai/{__version__}"}
    # made anew: it reads the proxies of the environment now, and urlopen remembers those of its first call
    opener = urllib.request.build_opener(_SafeRedirects)
    if start:
        try:
            request = urllib.request.Request(url, headers={**headers, "Range": f"bytes={start}-"})
            response = opener.open(request, timeout=TIMEOUT_S)
            if response.status != http.client.PARTIAL_CONTENT or _range_start(response) == start:
                return response
            response.close()
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
    return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)


def _range_start(response: Any) -> int | None:
    """Return the first byte of a partial answer, from `Content-Range: bytes START-END/TOTAL`."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None
