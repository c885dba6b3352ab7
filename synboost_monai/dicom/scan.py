"""What lies in a folder: every file of a tree once, with a reason if it is not one of ours, by headers alone.

Ours are ultrasound images and clips by SOP class and modality, whatever they are called. Nothing is decoded and nothing is believed:
names may be any bytes, links are not followed, pipes are not opened, and a UID serves to compare and to hash, never as a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from pydicom._uid_dict import UID_dictionary

from synboost_monai.dicom.files import check_kind, file_digest, open_regular, os_problem
from synboost_monai.dicom.header import as_dataset, as_tags
from synboost_monai.dicom.identifiers import IDENTIFYING_KEYWORDS, identifiers, patient_text
from synboost_monai.dicom.limits import Limits
from synboost_monai.dicom.objects import MANUFACTURER
from synboost_monai.dicom.reasons import NotUsableError
from synboost_monai.dicom.structure import SOP_CLASS, Element, Structure, walk_file

ULTRASOUND_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.6.1",  # Ultrasound Image
        "1.2.840.10008.5.1.4.1.1.3.1",  # Ultrasound Multi-frame Image
        "1.2.840.10008.5.1.4.1.1.6",  # the two of before 1997, retired
        "1.2.840.10008.5.1.4.1.1.3",
    }
)
"""SOP classes that are segmented."""
MULTI_FRAME_CAPTURES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.7.2",  # Multi-frame Grayscale Byte Secondary Capture Image
        "1.2.840.10008.5.1.4.1.1.7.4",  # Multi-frame True Color Secondary Capture Image
    }
)
"""SOP classes as which some archives and exports keep clips; segmented where the modality is US."""
DICOMDIR = "1.2.840.10008.1.3.10"
"""SOP class Media Storage Directory."""

LITTER = re.compile(
    r"\._.*|\.ds_store|thumbs\.db(:.*)?|ehthumbs.*\.db|desktop\.ini|\.localized|icon\r|\.directory|\.nomedia"
    r"|\.volumeicon\.icns|\.apdisk|autorun\.inf|\.fseventsd|\.com\.apple\..*|\.nfs[0-9a-f]{8,}|~\$.*",
    re.DOTALL,
)
"""Names (lower case) of files that operating systems leave behind."""
LITTER_FOLDERS = frozenset(
    {
        "__macosx",
        "lost+found",
        "$recycle.bin",
        "recycler",
        "system volume information",
        ".spotlight-v100",
        ".trashes",
        ".fseventsd",
        ".temporaryitems",
        ".documentrevisions-v100",
        ".appledouble",
        "@eadir",
        "#recycle",
        ".trash-1000",
    }
)
"""Names (lower case) of folders that hold nothing but such files."""

MODALITIES = frozenset(
    "ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FA FID FS GM HC HD IO IOL IVOCT IVUS KER KO LEN "
    "LP LS M3D MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT "
    "RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SC SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA VF XA XAPROTOCOL XC".split()
)
"""Defined terms of Modality (PS3.3, C.7.3.1.1.1, with some that are retired); no other word of a header gets into a sentence."""

SOP_INSTANCE, STUDY, SERIES, MODALITY = 0x00080018, 0x0020000D, 0x0020000E, 0x00080060
_MANUFACTURER = 0x00080070
_MEDIA_SOP_CLASS = 0x00020002
_ROWS, _COLUMNS, _FRAMES = 0x00280010, 0x00280011, 0x00280008
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_IDENTIFYING = as_tags(IDENTIFYING_KEYWORDS)
_IDENTIFYING_SEQUENCES = as_tags(name for name in IDENTIFYING_KEYWORDS if name.endswith("Sequence")) - as_tags(())
_WANTED = _IDENTIFYING | {SOP_CLASS, SOP_INSTANCE, STUDY, SERIES, MODALITY, _MANUFACTURER, _ROWS, _COLUMNS, _FRAMES}

QUICK_MB = 0.25
"""MB (2^20 bytes) of a header that is read in the process of the scan; one that is longer is read in a process that may die of it."""
HEADER_SECONDS, HEADER_MEMORY_MB = 60.0, 512.0
"""Limits of that process."""
MAX_IDENTIFYING_BYTES = 1 << 14
"""Of all values that identify, together; headers have some hundred. What they give is kept for every file of a folder."""
MAX_IDENTIFYING_VALUE = 1 << 10
"""Of each of them, where they have more together."""
MAX_WORDS = 1000
"""Words that identify, of one header; usual are a hundred."""
MAX_KNOWN = 200
"""Headers whose words are remembered."""

_Known = dict[tuple[object, ...], tuple[str, frozenset[str]]]
"""Identifying values as stored -> patient key and words: the files of a study share them, so they are worked out once."""


@dataclass(frozen=True)
class ScannedFile:
    """One entry of a folder that is not a folder, and what its header says."""

    path: str
    """Absolute."""
    relative: str
    """Below the folder that was scanned, with slashes; bytes that are no UTF-8 as surrogates (`os.fsencode` gives them back)."""
    size: int = 0
    """Bytes."""
    mtime_ns: int = 0
    """Time of the last change, nanoseconds."""
    reason: NotUsableError | None = None
    """Why it is not for us or cannot be used; None for an ultrasound image."""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_uid: str = ""
    series_uid: str = ""
    modality: str = ""
    """'' where it is no defined term."""
    transfer_syntax_uid: str = ""
    rows: int | None = None
    columns: int | None = None
    frames: int | None = None
    """1 where the header does not say; None where it says nonsense."""
    patient_key: str = ""
    """Hash of ID, issuer and name: 16 hexadecimal digits; '' where all are absent."""
    identifiers: frozenset[str] = frozenset()
    """Words of the header that identify (`identifiers.py`)."""

    @property
    def study_key(self) -> str:
        """Hash of the study's UID: 16 hexadecimal digits, safe as a name; '' where there is none."""
        return short_hash(self.study_uid) if self.study_uid else ""


def short_hash(text: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def scan(
    in_dir: str | os.PathLike[str], limits: Limits | None = None, *, exclude: Iterable[str | os.PathLike[str]] = ()
) -> Iterator[ScannedFile]:
    """Every file below a folder, in the order of their names' bytes, folder by folder.

    Folders that are links are not entered, so there are no loops; the link is one entry. A folder that cannot be read is one entry.

    Args:
        in_dir: a folder; or one file, which is then the only one.
        limits: of a file; the defaults where None.
        exclude: folders that are left out (the run's own output, if it lies inside).
    Raises:
        FileNotFoundError: if there is no such folder.
        PermissionError: if it cannot be read.
    """
    limits = limits or Limits()
    root = os.path.abspath(os.fspath(in_dir))
    if not os.path.lexists(root):
        raise FileNotFoundError(f"{in_dir}: no such folder")
    known: _Known = {}
    quick = replace(limits, max_header_mb=min(QUICK_MB, limits.max_header_mb))
    with contextlib.ExitStack() as stack:
        reader = _LongHeaders(limits, stack)
        for path, relative, problem in _entries(root, frozenset(_identity(folder) for folder in exclude)):
            file = _look_at(path, relative, problem, quick, known)
            is_long = file.reason is not None and file.reason.reason.code == "header_too_large"
            yield reader.look(file) if is_long and quick != limits else file


def look(path: str, limits: Limits) -> dict[str, Any]:
    """What a header says, as plain values; runs in a worker (`worker.ReaderPool.look`)."""
    file = _look_at(path, path, None, limits, {})
    values = {field.name: getattr(file, field.name) for field in fields(file)}
    reason = None if file.reason is None else [file.reason.reason.code, file.reason.facts]
    return {**values, "reason": reason, "identifiers": sorted(file.identifiers)}


class _LongHeaders:
    """Reads headers that are long in a process that may die of them; it is started with the first and ends with the scan."""

    def __init__(self, limits: Limits, stack: contextlib.ExitStack) -> None:
        seconds = min(limits.seconds_per_file, HEADER_SECONDS)
        self._limits = replace(limits, seconds_per_file=seconds, memory_mb=min(limits.memory_mb, HEADER_MEMORY_MB))
        self._stack = stack
        self._pool: Any = None

    def look(self, file: ScannedFile) -> ScannedFile:
        """The file with what its header says."""
        if self._pool is None:
            from synboost_monai.dicom.worker import ReaderPool  # loads decoders

            self._pool = self._stack.enter_context(ReaderPool(1, self._limits))
        try:
            values = self._pool.look(file.path)
        except NotUsableError as problem:
            return replace(file, reason=problem)
        reason = values.pop("reason")
        return ScannedFile(
            **{
                **values,
                "path": file.path,
                "relative": file.relative,
                "reason": None if reason is None else NotUsableError(reason[0], **reason[1]),
                "identifiers": frozenset(values["identifiers"]),
            }
        )


def mark_duplicates(
    files: Iterable[ScannedFile],
    digest: Callable[[ScannedFile], str] | None = None,
    limits: Limits | None = None,
    check: Callable[[ScannedFile], None] | None = None,
) -> list[ScannedFile]:
    """Give files that share a SOP Instance UID their reason: `duplicate` for a copy, `conflicting_duplicate` for a contradiction.

    Of files with the same content the first by path is kept. The same content is the same data set in the same transfer syntax; the
    preamble and the file meta information, which say who wrote a file, do not count, nor does what may stand behind the last frame. Of
    files that differ each must be readable, its header and all its frames, to count: one that is not is refused by itself. If any two
    that are readable differ, none is kept.

    Args:
        files: of one scan.
        digest: SHA-256 of a file, if the caller keeps them; by `files.file_digest` where None.
        limits: of a file; the defaults where None.
        check: raises the reason for which a file cannot be read whole; by a worker process where None.
    Returns:
        All files in their order.
    """
    files = list(files)
    limits = limits or Limits()
    seconds = limits.seconds_per_file
    digest = digest or (lambda file: file_digest(file.path, file.size, file.mtime_ns, max_seconds=seconds))
    groups: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        if file.reason is None:
            groups.setdefault(file.sop_instance_uid, []).append(index)
    with contextlib.ExitStack() as stack:
        check = check or _check_by_worker(limits, stack)
        for indices in groups.values():
            if len(indices) > 1:
                indices.sort(key=lambda index: sort_key(files[index].relative))
                _judge_copies(files, indices, digest, check, limits)
    return files


def content_digest(file: ScannedFile, limits: Limits | None = None, max_bytes: int | None = None) -> str:
    """SHA-256 of a file's transfer syntax and data set, without preamble and file meta information.

    Args:
        file: of a scan.
        limits: of a file; the defaults where None.
        max_bytes: of the data set that count; None for all.
    Raises:
        NotUsableError: if it cannot be read any more, or has changed since the scan.
    """
    limits = limits or Limits()
    with open_regular(file.path) as opened:
        structure = walk_file(opened, limits, frozenset())
    seconds = limits.seconds_per_file
    content = file_digest(
        file.path, file.size, file.mtime_ns, structure.data_set_offset, max_seconds=seconds, max_bytes=max_bytes
    )
    return f"{structure.transfer_syntax}:{content}"


def check_unchanged(file: ScannedFile) -> None:
    """Make sure that a file is what it was when it was scanned, by size and time.

    Raises:
        NotUsableError: changed, or vanished and kin.
    """
    try:
        status = os.lstat(file.path)
    except OSError as error:
        raise os_problem(error) from error
    check_kind(status.st_mode, file.path)
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise NotUsableError("changed")


def sort_key(relative: str) -> list[bytes]:
    """Order of the scan: by the bytes of the names, folder by folder."""
    return os.fsencode(relative).split(b"/")


def is_uid(text: str) -> bool:
    """Whether a text is a UID: at most 64 digits and dots (PS3.5, 9.1; a part may start with 0, as some do in practice)."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Which folder it is, by whatever name; one that is not there yet is none."""
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1)
    return status.st_dev, status.st_ino


def _entries(root: str, excluded: frozenset[tuple[int, int]]) -> Iterator[tuple[str, str, NotUsableError | None]]:
    """(path, relative path, reason) of every entry that is not a folder; the reason of those known without opening them."""
    if not os.path.isdir(root):
        yield root, os.path.basename(root), None
        return
    litter = NotUsableError("operating_system_file")
    pending = [(name, False) for name in _names(root)]  # a stack: last first; (relative path, inside litter)
    while pending:
        relative, is_litter = pending.pop()
        path = os.path.join(root, relative)
        try:
            status = os.lstat(path)
        except (OSError, ValueError) as error:
            yield path, relative, litter if is_litter else os_problem(error)
            continue
        name = os.path.basename(relative).lower()
        if not stat.S_ISDIR(status.st_mode):
            is_litter = stat.S_ISREG(status.st_mode) and (is_litter or LITTER.fullmatch(name) is not None)
            yield path, relative, litter if is_litter else None
            continue
        if (status.st_dev, status.st_ino) in excluded:
            continue
        is_litter = is_litter or name in LITTER_FOLDERS
        try:
            pending.extend((f"{relative}/{below}", is_litter) for below in _names(path))
        except OSError as error:
            yield path, relative, litter if is_litter else os_problem(error)


def _names(folder: str) -> list[str]:
    """Names in a folder, last first."""
    return sorted(os.listdir(folder), key=os.fsencode, reverse=True)


def _look_at(path: str, relative: str, problem: NotUsableError | None, limits: Limits, known: _Known) -> ScannedFile:
    """A file with its reason and the facts of its header."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError) as error:
        return ScannedFile(path, relative, reason=problem or os_problem(error))
    file = ScannedFile(path, relative, status.st_size, status.st_mtime_ns, problem)
    if problem is not None:
        return file
    try:
        with open_regular(path) as opened:
            structure = walk_file(opened, limits, _WANTED)
            file = replace(file, size=opened.size, mtime_ns=opened.mtime_ns)
    except NotUsableError as error:
        return replace(file, reason=error)
    if not structure.elements and not structure.meta:
        return replace(file, reason=structure.problem or NotUsableError("not_dicom"))
    return _with_facts(file, structure, known)


def _with_facts(file: ScannedFile, structure: Structure, known: _Known) -> ScannedFile:
    """A DICOM file with what its header says."""
    frames: int | None = 1
    if words := structure.text(_FRAMES):
        frames = int(words) if words.isascii() and words.isdigit() and len(words) < 10 else None
    modality = structure.text(MODALITY).upper()
    patient_key, words_that_identify = _identity_of(structure, known)
    return replace(
        file,
        reason=_reason(structure),
        sop_class_uid=_uid_or_none(structure.text(SOP_CLASS) or structure.text(_MEDIA_SOP_CLASS)),
        sop_instance_uid=_uid_or_none(structure.text(SOP_INSTANCE)),
        study_uid=_uid_or_none(structure.text(STUDY)),
        series_uid=_uid_or_none(structure.text(SERIES)),
        modality=modality if modality in MODALITIES else "",
        transfer_syntax_uid=_uid_or_none(structure.transfer_syntax),
        rows=structure.number(_ROWS),
        columns=structure.number(_COLUMNS),
        frames=frames,
        patient_key=patient_key,
        identifiers=words_that_identify,
    )


def _identity_of(structure: Structure, known: _Known) -> tuple[str, frozenset[str]]:
    """Patient key and identifying words of a header."""
    elements = {tag: element for tag, element in structure.elements.items() if tag in _IDENTIFYING}
    if sum(len(element.value or b"") for element in elements.values()) > MAX_IDENTIFYING_BYTES:
        elements = _shortened(elements, structure)
    stored = (structure.is_little_endian, *elements.values())
    if stored not in known:
        try:
            dataset = as_dataset(replace(structure, elements=elements, meta={}))
        except NotUsableError as problem:  # sequences too deep
            structure.problem = structure.problem or problem
            return "", frozenset()
        text = patient_text(dataset)
        if len(known) >= MAX_KNOWN:
            known.clear()
        known[stored] = (short_hash(text) if text else "", identifiers(dataset))
    key, words_of_it = known[stored]
    if len(words_of_it) > MAX_WORDS:
        known[stored] = key, frozenset(sorted(words_of_it, key=lambda word: (len(word) < 3, word))[:MAX_WORDS])
    return known[stored]


def _shortened(elements: dict[int, Element], structure: Structure) -> dict[int, Element]:
    """The starts of long values, which still tell the words that identify; a sequence as long is refused."""
    kept = {}
    for tag, element in elements.items():
        value = element.value or b""
        if len(value) <= MAX_IDENTIFYING_VALUE:
            kept[tag] = element
        elif element.vr == "SQ" or tag in _IDENTIFYING_SEQUENCES:
            words = f"a sequence that names its patient has more than {MAX_IDENTIFYING_VALUE} bytes"
            structure.problem = structure.problem or NotUsableError("broken_header", problem=words)
        else:
            kept[tag] = element._replace(value=value[:MAX_IDENTIFYING_VALUE])
    return kept


def _reason(structure: Structure) -> NotUsableError | None:
    """Why a DICOM file is not segmented: what it is counts first, then whether it can be read and told from others."""
    media_class = structure.text(_MEDIA_SOP_CLASS)
    sop_class = structure.text(SOP_CLASS) or media_class
    modality = structure.text(MODALITY).upper()
    if DICOMDIR in (sop_class, media_class):
        return NotUsableError("dicomdir")
    is_ours = sop_class in ULTRASOUND_CLASSES or (
        # an overlay of ours is such a capture too: a result, and no input of the next run
        sop_class in MULTI_FRAME_CAPTURES and modality == "US" and structure.text(_MANUFACTURER) != MANUFACTURER
    )
    if sop_class and not is_ours or modality and modality != "US":
        facts = {"sop_class": _class_name(sop_class)}
        if modality == "US" and not _is_other_image(sop_class):
            return NotUsableError("not_an_image", **facts)
        return NotUsableError(
            "other_modality", modality=modality if modality in MODALITIES else "non-ultrasound", **facts
        )
    if structure.problem is not None:
        return structure.problem
    if not sop_class:
        return NotUsableError("missing_identifier", keyword="SOPClassUID")
    for tag, keyword in (
        (SOP_INSTANCE, "SOPInstanceUID"),
        (STUDY, "StudyInstanceUID"),
        (SERIES, "SeriesInstanceUID"),
    ):
        if not structure.text(tag):
            return NotUsableError("missing_identifier", keyword=keyword)
        if not is_uid(structure.text(tag)):
            return NotUsableError("bad_identifier", keyword=keyword)
    return None if structure.pixels else NotUsableError("no_pixels")


def _is_other_image(sop_class: str) -> bool:
    """Whether a class holds pictures all the same, saved as secondary captures."""
    return sop_class.startswith("1.2.840.10008.5.1.4.1.1.7")


def _class_name(sop_class: str) -> str:
    """Name of a SOP class; one that the standard does not know is not repeated."""
    entry = UID_dictionary.get(sop_class)
    return entry[0].removesuffix(" Storage") if entry else "of an unknown class"


def _uid_or_none(text: str) -> str:
    """A valid UID, or ''."""
    return text if is_uid(text) else ""


def _check_by_worker(limits: Limits, stack: contextlib.ExitStack) -> Callable[[ScannedFile], None]:
    """Reads files whole in a worker process, which is started with the first."""
    pools: list[Any] = []

    def check(file: ScannedFile) -> None:
        if not pools:
            from synboost_monai.dicom.worker import ReaderPool  # loads decoders

            pools.append(stack.enter_context(ReaderPool(1, limits)))
        pools[0].check(file.path)

    return check


def _judge_copies(
    files: list[ScannedFile],
    indices: list[int],
    digest: Callable[[ScannedFile], str],
    check: Callable[[ScannedFile], None],
    limits: Limits,
) -> None:
    """Mark files that share a UID; one that cannot be read any more gets that as its reason and has no say."""
    whole: dict[int, str] = {}
    for index in indices:
        try:
            whole[index] = digest(files[index])
        except NotUsableError as problem:
            files[index] = replace(files[index], reason=problem)
    if len(set(whole.values())) > 1:
        for index in list(whole):
            try:
                whole[index] = content_digest(files[index], limits)
            except NotUsableError as problem:
                del whole[index]
                files[index] = replace(files[index], reason=problem)
    if len(set(whole.values())) > 1:
        _leave_readable(files, whole, check)
        _join_cut_ends(files, whole, limits)
    is_conflict = len(set(whole.values())) > 1
    for index in list(whole)[0 if is_conflict else 1 :]:
        code = "conflicting_duplicate" if is_conflict else "duplicate"
        files[index] = replace(files[index], reason=NotUsableError(code))


def _leave_readable(files: list[ScannedFile], whole: dict[int, str], check: Callable[[ScannedFile], None]) -> None:
    """Give those that cannot be read whole their reason; they contradict nobody."""
    problems: dict[str, NotUsableError | None] = {}
    for index, content in list(whole.items()):
        if content not in problems:
            problems[content] = None
            try:
                check(files[index])
            except NotUsableError as problem:
                problems[content] = problem
        if (found := problems[content]) is not None:
            del whole[index]
            files[index] = replace(files[index], reason=found)


def _join_cut_ends(files: list[ScannedFile], whole: dict[int, str], limits: Limits) -> None:
    """Take files that are the longest one without its end, but with all frames, for copies of it; the longest comes first."""
    if len(set(whole.values())) < 2:
        return
    sizes = {index: _data_set_bytes(files[index], limits) for index in whole}
    longest = max(whole, key=lambda index: sizes[index])
    for index in whole:
        with contextlib.suppress(NotUsableError):  # changed in between: then they differ
            if content_digest(files[longest], limits, sizes[index]) == whole[index]:
                whole[index] = whole[longest]
    if len(set(whole.values())) == 1:
        first = {longest: whole.pop(longest), **whole}
        whole.clear()
        whole.update(first)


def _data_set_bytes(file: ScannedFile, limits: Limits) -> int:
    """Length of a file without preamble and file meta information; 0 where it cannot be opened any more."""
    with contextlib.suppress(NotUsableError), open_regular(file.path) as opened:
        return opened.size - walk_file(opened, limits, frozenset()).data_set_offset
    return 0
