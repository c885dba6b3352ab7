"""Limit what reading one file may cost in size, time and memory; a file beyond a limit is refused."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Hold the limits of one file; a file beyond any of them is refused with a reason, and the run goes on."""

    max_header_mb: float = 16
    """Largest header, all that comes before the pixel data, in MB (2^20 bytes); ultrasound has a few kB, with private data a few MB."""
    max_rows_columns: int = 8192
    """Longest side of an image, in pixels; ultrasound systems write 480 to 1,200."""
    max_frames: int = 3_600
    """Most frames of a clip, since each costs network time: two minutes at 30 frames a second. Loops have about a hundred."""
    max_study_frames: int = 60_000
    """Most frames of a study; a stress echo of a hundred loops has a third of that. The shortest clips are taken first."""
    max_values: float = 4e9
    """Largest rows x columns x frames x samples that a header may announce; checked before anything is decoded."""
    max_inflated_mb: float = 2048
    """Largest size to which a deflated file may inflate, in MB (2^20 bytes); a bomb of less than 1 MB would reach gigabytes."""
    seconds_per_file: float = 600
    """Longest time to read one file with all its frames, in seconds; time that the consumer takes between windows does not count."""
    memory_mb: float = 4096
    """Memory that the worker process of a file may take beyond what it needs to start, in MB (2^20 bytes)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"limits.py: {field.name} must be a number above 0, got {value!r}")
