"""Write the files that the two segmenters' bundles share, from one template of each and the values that differ between them.

    python scripts/write_bundles.py            after a change in scripts/segmenter_bundle
    python scripts/write_bundles.py --check    name the files of the bundles that differ from the templates' output

In a template `{{key}}` stands for a value of `values.yaml`. A line that begins with `{{cris}}` or `{{clipseg}}` belongs to that one only.
The recipe of each train.yaml, also that of the diffusion model, is written from the settings at the head of that file, and the classes
in each metadata.json from the table of structures.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from synboost_monai.structures import CLASS_NAMES, SECTOR_CLASS_NAMES, STRUCTURES  # noqa: E402

TEMPLATES = Path(__file__).resolve().with_name("segmenter_bundle")
VALUES = TEMPLATES / "values.yaml"
ARCHITECTURES = {values["architecture"] for values in yaml.safe_load(VALUES.read_text(encoding="utf-8")).values()}
"""Segmenters that have a bundle."""
DIFFUSION_CONFIGS = ROOT / "bundles/echo_semantic_diffusion/configs"
"""Configs without a template, whose recipe and classes are written too."""
NOT_OF_THE_RECIPE = {
    *("bundle_root", "output_dir", "device", "resume", "num_workers", "cache_rate"),
    *("channels_last", "gradient_checkpointing", "threshold", "image_mean", "image_std"),
    *("val_interval", "save_interval", "picture_interval", "picture_steps", "early_stop_patience"),
}
"""Training settings that may change before a training continues; all others are compared with those of the unfinished training."""


def rendered(template: str, values: dict[str, str]) -> str:
    """Return a template with its values.

    Raises:
        KeyError: if it asks for a value that the bundle does not have.
    """
    lines = []
    for line in template.splitlines(keepends=True):
        alone = re.match(r"\{\{(\w+)\}\}", line)
        if alone is None or alone[1] not in ARCHITECTURES or alone[1] == values["architecture"]:
            line = line[alone.end() :] if alone and alone[1] in ARCHITECTURES else line
            lines.append(re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], line))
    return "".join(lines)


def with_recipe(config: str) -> str:
    """Return a train.yaml whose `recipe` names the settings above `facts`, so that each is written down once."""
    content = yaml.safe_load(config)
    settings = list(content)[: list(content).index("facts")]
    lines = [
        f"  {key}: $@facts['{key}']\n" if key in content["facts"]["said"] else f"  {key}: '@{key}'\n"
        for key in settings
        if key not in NOT_OF_THE_RECIPE
    ]
    return re.sub(r"(?m)^(recipe:.*\n)(?:  .*\n)*", lambda match: match[1] + "".join(lines), config)


def with_classes(metadata: str) -> str:
    """Return a metadata.json whose label maps, and tensors of label maps, have the classes of the table of structures."""

    def tensor(match: re.Match[str]) -> str:
        names = SECTOR_CLASS_NAMES if SECTOR_CLASS_NAMES["0"] in match[0] else CLASS_NAMES
        # a segmenter has a channel for each structure, the diffusion model one for each class
        number = len(names) if names is SECTOR_CLASS_NAMES else len(STRUCTURES)
        head = re.sub(r'("num_channels": )\d+', rf"\g<1>{number}", match[1])
        return head + ",".join(f"\n{' ' * 20}{json.dumps(k)}: {json.dumps(v)}" for k, v in names.items())

    said = ", ".join(f"{index} {name.replace('_', ' ')}" for index, name in CLASS_NAMES.items())
    metadata = re.sub(r'("label_classes": "single channel: )[^"]*', lambda match: match[1] + said, metadata)
    return re.sub(r'("format": "segmentation",[^{]*"channel_def": \{)([^}]*?)(?=\s*\})', tensor, metadata)


def bundle_files() -> Iterator[tuple[Path, str]]:
    """Yield each file of each bundle that has a template, and its expected content."""
    for name, values in yaml.safe_load(VALUES.read_text(encoding="utf-8")).items():
        for path in sorted(TEMPLATES.rglob("*")):
            if path.is_file() and path != VALUES:
                text = rendered(path.read_text(encoding="utf-8"), {"bundle": name, **values})
                text = with_recipe(text) if path.name == "train.yaml" else text
                text = with_classes(text) if path.name == "metadata.json" else text
                yield ROOT / "bundles" / name / path.relative_to(TEMPLATES), text
    for name, written in (("train.yaml", with_recipe), ("metadata.json", with_classes)):
        yield DIFFUSION_CONFIGS / name, written((DIFFUSION_CONFIGS / name).read_text(encoding="utf-8"))


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main(arguments: list[str]) -> int:
    """Write the files, or with --check return 1 if one is out of date."""
    stale = [(path, text) for path, text in bundle_files() if not _holds(path, text)]
    for path, text in stale:
        print(path.relative_to(ROOT))
        if arguments != ["--check"]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return int(bool(stale) and arguments == ["--check"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
