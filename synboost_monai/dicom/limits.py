"""What one file may cost: sizes, time and memory beyond which it is refused instead of read."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Limits of one file; a file beyond any of them is refused with a reason, and the run goes on."""

    max_header_mb: float = 16
    """MB (2^20 bytes) of everything before the pixel data; an ultrasound header has a few kB, with private data a few MB."""
    max_rows_columns: int = 8192
    """Pixels a side of the image; ultrasound systems write 480 to 1,200."""
    max_frames: int = 3_600
    """Frames of a clip, each of which costs the network's time: two minutes at 30 frames a second. Loops have some hundred."""
    max_study_frames: int = 60_000
    """Frames of a study; a stress echo of a hundred loops has a third of that. The shortest clips are taken first."""
    max_values: float = 4e9
    """Rows x columns x frames x samples: what a header may announce before anything is decoded."""
    max_inflated_mb: float = 2048
    """MB (2^20 bytes) to which a deflated file may inflate; a bomb of less than 1 MB would reach gigabytes."""
    seconds_per_file: float = 600
    """Seconds of reading one file, all its frames; time that the consumer takes between windows does not count."""
    memory_mb: float = 4096
    """MB (2^20 bytes) of memory that the worker process of a file may take beyond what it needs to start."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"limits.py: {field.name} must be a number above 0, got {value!r}")
