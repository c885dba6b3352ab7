"""Turn a folder of CAMUS or EchoNet-Dynamic into datalist.json and a summary of what the copy holds and lacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from synboost_monai.files import atomic_write_text
from synboost_monai.paths import refuse_overwriting


def prepare_dataset(dataset: str | os.PathLike[str], output_dir: str | os.PathLike[str], **options: Any) -> str:
    """Read a folder of CAMUS, EchoNet-Dynamic or a phantom, and write datalist.json and summary.txt.

    A folder with FileList.csv and Videos is EchoNet-Dynamic; its images and label maps are written too.

    Args:
        dataset: folder of the data set.
        output_dir: folder to write to.
        options: arguments of `synboost_monai.data.camus.read_camus`; for EchoNet-Dynamic, `split` must be official.
    Returns:
        the summary, as text.
    Raises:
        ValueError, FileNotFoundError: as `read_camus` and `read_echonet`; no datalist is written then.
    """
    from synboost_monai.data.camus import read_camus
    from synboost_monai.data.datalist import PATH_KEYS, SUMMARY_NAME, write_datalist
    from synboost_monai.data.echonet import find_echonet, read_echonet

    datalist_path = Path(output_dir, "datalist.json")
    summary_path = datalist_path.with_name(SUMMARY_NAME)
    split = options.get("split", "official")
    if (folder := find_echonet(dataset)) is not None:
        if split != "official":
            raise ValueError(f"{folder}: split {split} is of CAMUS; EchoNet-Dynamic has its own, give official")
        refuse_overwriting([datalist_path, summary_path], [folder / "FileList.csv", folder / "VolumeTracings.csv"])
        echonet = read_echonet(dataset, output_dir, **{key: value for key, value in options.items() if key != "split"})
        splits, summary, layout = echonet.splits, echonet.summary, "EchoNet-Dynamic"
    else:
        found = read_camus(dataset, **options)
        splits, summary, layout = found.splits, str(found.summary), "CAMUS layout"
        records = [record for part in splits.values() for record in part]
        refuse_overwriting([datalist_path, summary_path], [getattr(r, key) for r in records for key in PATH_KEYS])
    atomic_write_text(summary_path, summary + "\n")
    write_datalist(
        datalist_path,
        splits,
        name=Path(dataset).resolve().name,
        description=f"{layout}, {split} split, read from {dataset}",
    )
    return f"{summary}\n{datalist_path}"
