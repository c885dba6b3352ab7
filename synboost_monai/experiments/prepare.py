"""A CAMUS folder -> datalist.json and a summary of what the copy holds and lacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from synboost_monai.io import atomic_write_text
from synboost_monai.paths import refuse_overwriting


def prepare_dataset(dataset: str | os.PathLike[str], output_dir: str | os.PathLike[str], **options: Any) -> str:
    """Read a CAMUS or phantom folder and write datalist.json and summary.txt.

    Args:
        dataset: folder of the data set.
        output_dir: folder to write to.
        options: arguments of `synboost_monai.data.camus.read_camus`.
    Returns:
        the summary, as text.
    Raises:
        ValueError, FileNotFoundError: as `read_camus`; nothing is written then.
    """
    from synboost_monai.data.camus import read_camus
    from synboost_monai.data.datalist import PATH_KEYS, SUMMARY_NAME, write_datalist

    found = read_camus(dataset, **options)
    datalist_path = Path(output_dir, "datalist.json")
    records = [record for part in found.splits.values() for record in part]
    read = [getattr(record, key) for record in records for key in PATH_KEYS]
    refuse_overwriting([datalist_path, datalist_path.with_name(SUMMARY_NAME)], read)
    summary = str(found.summary)
    atomic_write_text(datalist_path.with_name(SUMMARY_NAME), summary + "\n")
    write_datalist(
        datalist_path,
        found.splits,
        name=Path(dataset).resolve().name,
        description=f"CAMUS layout, {options.get('split', 'official')} split, read from {dataset}",
    )
    return f"{summary}\n{datalist_path}"
