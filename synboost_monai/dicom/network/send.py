"""Send our own DICOM files over the network, by C-STORE, in a transfer syntax that the destination accepts."""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synboost_monai.dicom import elements
from synboost_monai.dicom.network.common import NotReachableError, Status, check_title
from synboost_monai.dicom.network.tls import Tls
from synboost_monai.dicom.quiet import quiet
from synboost_monai.dicom.uids import DEFLATED, EXPLICIT, IMPLICIT, JPEG_BASELINE, RLE
from synboost_monai.dicom.writing.objects import recode_deflated, save

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileMetaDataset


@dataclass(frozen=True)
class Destination:
    """Hold the address of the node that objects are sent to."""

    ae_title: str
    host: str
    port: int
    tls: Tls = field(default_factory=Tls)
    """How connections to it are encrypted."""

    @classmethod
    def parse(cls, text: str, tls: Tls | None = None) -> Destination:
        """Parse a destination of the form `TITLE@HOST:PORT`.

        Raises:
            ValueError: if the text has another form.
        """
        title, at, rest = text.rpartition("@")
        host, colon, port = rest.rpartition(":")
        if not (at and colon and host and port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
            raise ValueError(f"{text!r} is no destination; expected TITLE@HOST:PORT, such as ARCHIVE@10.1.2.3:104")
        check_title(title)
        return cls(title.strip(), host.strip("[]"), int(port), tls or Tls())


def send_files(
    paths: Sequence[Path], destination: Destination, ae_title: str, scratch: Path, timeout: float = 60
) -> Iterator[tuple[Path, str]]:
    """Send our own DICOM files by C-STORE in one association; call it inside `quiet_network`.

    A file whose transfer syntax the destination does not accept is sent as Explicit, else Implicit VR Little Endian, without further loss.

    Args:
        paths: paths of the files.
        destination: node that all files are sent to.
        ae_title: AE title of the sender.
        scratch: folder for copies in another transfer syntax.
        timeout: seconds that the destination may be silent.
    Returns:
        Each path with '' if the file was accepted, or else the reason; ends early if the association is lost.
    Raises:
        NotReachableError: if there is no association.
    """
    from pynetdicom import AE

    metas = {path: meta_of(path) for path in paths}
    kinds = {path: (str(m.MediaStorageSOPClassUID), str(m.TransferSyntaxUID)) for path, m in metas.items()}
    entity = AE(ae_title=ae_title)
    entity.acse_timeout = entity.network_timeout = entity.connection_timeout = timeout
    entity.dimse_timeout = max(timeout, 120)  # archives process an object before they answer
    for sop_class, syntax in sorted(set(kinds.values())):
        for offered in dict.fromkeys((syntax, EXPLICIT, IMPLICIT)):
            if (sop_class, [offered]) not in [
                (c.abstract_syntax, c.transfer_syntax) for c in entity.requested_contexts
            ]:
                entity.add_requested_context(sop_class, offered)
    context = destination.tls.client_context()
    association = entity.associate(
        destination.host,
        destination.port,
        ae_title=destination.ae_title,
        tls_args=None if context is None else (context, destination.host),
    )
    if not association.is_established:
        is_answered = association.is_rejected or association.acceptor.primitive is not None
        if context is not None and context.problem and not is_answered:
            raise NotReachableError(f"no encrypted connection: {context.problem}")
        how = "it refuses the association (AE titles?)" if association.is_rejected else "nobody answers, or not in time"
        if association.is_aborted and not association.is_rejected and association.acceptor.primitive is not None:
            how = "it takes none of the objects' classes"
        raise NotReachableError(how)
    try:
        taken = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts}
        for path, (sop_class, syntax) in kinds.items():
            target = next((s for s in (syntax, EXPLICIT, IMPLICIT) if (sop_class, s) in taken), None)
            if target is None:
                yield path, "the destination does not take objects of this class"
                continue
            with in_syntax(path, syntax, target, scratch) as ready:
                if not association.is_established:
                    return
                answer = association.send_c_store(ready)
            if "Status" not in answer:
                return
            yield path, _refusal(int(answer.Status))
    finally:
        if association.is_established:
            association.release()


def _refusal(status: int) -> str:
    """Return why an object was not accepted; '' if it was, perhaps with a warning."""
    if status == Status.SUCCESS or status in (0x0001, 0x0107, 0x0116) or status >> 12 == 0xB:
        return ""
    return f"the destination answers with status 0x{status:04X}"


def meta_of(path: Path) -> FileMetaDataset:
    """Return the file meta information of one of our own files."""
    from pydicom.filereader import read_file_meta_info

    with quiet():
        return read_file_meta_info(path)


@contextlib.contextmanager
def in_syntax(path: Path, syntax: str, wanted: str, scratch: Path) -> Iterator[Path]:
    """Yield a file in the wanted transfer syntax: the file itself, or a copy that is removed afterwards."""
    if syntax == wanted:
        yield path
        return
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        plain = path
        if syntax in (RLE, JPEG_BASELINE, DEFLATED):
            plain = Path(folder, "explicit.dcm")
            write_decompressed(path, plain)
        if wanted == IMPLICIT:
            implicit = Path(folder, "implicit.dcm")
            _write_implicit(plain, implicit)
            plain = implicit
        yield plain


def write_decompressed(path: Path, target: Path) -> None:
    """Write an uncompressed copy (Explicit VR Little Endian) of a deflated file, or of one with 8-bit RLE or JPEG frames, piece by piece.

    Nothing more is lost, so it stays the same object (PS3.4 B.4.1.3).
    """
    import pydicom
    from pydicom.pixels import iter_pixels

    with quiet():
        meta = meta_of(path)
        if meta.TransferSyntaxUID == DEFLATED:
            meta.TransferSyntaxUID = pydicom.uid.UID(EXPLICIT)
            with open(path, "rb") as source, open(target, "wb") as copy:
                recode_deflated(source, copy, meta, zlib.decompressobj(-zlib.MAX_WBITS))
            return
        dataset: Dataset = pydicom.dcmread(path, stop_before_pixels=True)
    num_bytes = (
        int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel) * int(dataset.get("NumberOfFrames", 1))
    )
    if int(dataset.SamplesPerPixel) > 1:
        dataset.PlanarConfiguration = 0
        dataset.PhotometricInterpretation = "RGB"

    def write_tail(file: Any) -> None:
        elements.write_native_pixels(file, num_bytes, iter_pixels(path))  # colours of JPEG become RGB

    save(dataset, target, write_tail)


def _write_implicit(path: Path, target: Path) -> None:
    """Write a copy of an uncompressed file as Implicit VR Little Endian; long values are read one at a time."""
    import pydicom

    with quiet():
        dataset = pydicom.dcmread(path, defer_size=1 << 16)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(IMPLICIT)
        dataset.save_as(target, implicit_vr=True, little_endian=True, enforce_file_format=True)
