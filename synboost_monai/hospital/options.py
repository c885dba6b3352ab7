"""Hold what `synboost dicom` and `synboost listen` can be asked for: each field is a flag of the command line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from synboost_monai.options import SegmenterOptions
from synboost_monai.quantities import LANGUAGES
from synboost_monai.records import VIEWS

FRAME_CHOICES = ("ed-es", "all")
"""`--frames`: those of end-diastole and end-systole, or every frame."""
VIEW_CHOICES = {"auto": None, "a4c": VIEWS["4CH"], "a2c": VIEWS["2CH"]}
"""`--view` -> view of every clip; None: each clip's own."""
SEGMENTATION_CHOICES = {"binary": "BINARY", "labelmap": "LABELMAP", "ohif": "BINARY"}
"""`--segmentation` -> type of the DICOM SEG."""
REPORT_CHOICES = ("none", *LANGUAGES)
"""`--report`: no page of each study for people, or one in this language."""
OHIF = "ohif"
"""The choice whose calibrated segmentations state an orientation that is not known, without which OHIF shows none."""
ENGINES = ("local", "ray")
"""`--engine`: threads of this process, or Ray actors."""
PATHS = ("redacted", "plain", "hashed")
"""`--paths`: how the ledger shows the input's paths."""


@dataclass(frozen=True)
class HospitalOptions(SegmenterOptions):
    """Options of every way to segment a hospital's studies.

    Args:
        frames: ed-es writes end-diastole and end-systole, all every frame.
        view: view of the clips: auto (by their headers, else the network's opinion), a4c or a2c.
        segmentation: binary; labelmap, which many archives do not know yet; or ohif, binary with a nominal orientation, for OHIF from 3.13.
        overlay: also write frames with outlines, cut to the sector.
        contours: also write the outlines of end-diastole and end-systole as structured report, which OHIF draws on the clip itself.
        scout: weights of a small network that looks for the beats, or shipped for the bundle's own: a large network then sees a few frames
            of a clip only. It has no effect with frames all.
        report: language of the page that is written for people, as HTML and as encapsulated PDF: en or de; none writes no page.
    Raises:
        ValueError: if a value is not among the choices.
    """

    frames: str = "ed-es"
    view: str = "auto"
    segmentation: str = "binary"
    overlay: bool = True
    contours: bool = False
    scout: str | None = None
    report: str = "en"

    def __post_init__(self) -> None:
        self._check("frames", FRAME_CHOICES)
        self._check("report", REPORT_CHOICES)
        self._check("view", VIEW_CHOICES)
        self._check("segmentation", SEGMENTATION_CHOICES)

    def _check(self, name: str, choices: Iterable[str]) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(f"{name} must be {', '.join(choices)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class BatchOptions(HospitalOptions):
    """Options of a run over a folder of studies.

    Args:
        workers: number of studies that are processed at a time, and of processes that read files.
        engine: local, or ray.
        resume: go on with an unfinished run.
        deidentify: file with a secret of 32 random bytes; outputs are then made from de-identified copies, which are written too.
        paths: how the ledger shows the input's paths: redacted, plain or hashed.
        given: CSV with columns sop_instance_uid, end_diastole, end_systole: frames that a person chose.
        ray_address: address of a Ray cluster; by default one is started on this machine.
        from_: URL?QUERY of a DICOMweb service, whose studies are first fetched into in_dir.
        to: URL of a DICOMweb service, in which the results are stored at the end.
    Raises:
        ValueError: if a value is not among the choices, or two do not go together.
    """

    workers: int = 2
    engine: str = "local"
    resume: bool = False
    deidentify: str | None = None
    paths: str = "redacted"
    given: str | None = None
    ray_address: str | None = None
    from_: str | None = None
    to: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("engine", ENGINES)
        self._check("paths", PATHS)
        if self.deidentify is not None and self.paths == "plain":
            raise ValueError(
                "paths plain would link de-identified outputs to their originals; leave out paths or deidentify"
            )
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or self.workers < 1:
            raise ValueError(f"workers must be a whole number of at least 1, got {self.workers!r}")


@dataclass(frozen=True)
class ListenOptions(HospitalOptions):
    """Options of a DICOM node.

    Args:
        host: address to listen on; any but this machine's own needs allowed_titles and allowed_peers.
        port: port to listen on; 0 takes a free one.
        ae_title: AE title of the node; senders have to call it by this title.
        allowed_titles: AE titles of senders, with commas between.
        allowed_peers: addresses or networks of senders, with commas between.
        destination: TITLE@HOST:PORT, or URL of a DICOMweb service, that results are sent to; by default they stay in out_dir.
        poll: URL?QUERY of a DICOMweb service, whose studies are fetched again and again, for archives that do not send.
        poll_seconds: time between two such searches.
        quiet_seconds: a study is complete when nothing has come of it for this long.
        max_object_mb: size of the largest object that is received; the connection of a larger one is cut.
        max_inbox_mb: size of all objects that are kept; beyond it, senders are told that there is no room.
        tls: which connections are encrypted: none, listen (those of senders), send (those to the destination), or both.
        tls_certificate: PEM file of the node's certificate, which it shows to senders and to the destination.
        tls_key: PEM file of the private key of that certificate, not encrypted.
        tls_authorities: PEM file of the authorities that must have signed the certificates of senders and of the destination; by default
            senders need none, and the system's authorities count for the destination.
        keep_days: days after which a study is removed once its results were delivered; by default nothing is removed.
    Raises:
        ValueError: if a value is not among the choices or not above 0.
    """

    host: str = "127.0.0.1"
    port: int = 11112
    ae_title: str = "SYNBOOST"
    allowed_titles: str = ""
    allowed_peers: str = ""
    destination: str | None = None
    poll: str | None = None
    poll_seconds: float = 60.0
    quiet_seconds: float = 60.0
    max_object_mb: float = 4096
    max_inbox_mb: float = 100_000
    tls: str = "none"
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_authorities: str | None = None
    keep_days: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("quiet_seconds", "poll_seconds", "keep_days", "max_inbox_mb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")
