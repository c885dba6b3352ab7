"""Test the checks of MONAI's model zoo on new bundles (its CONTRIBUTING and continuous integration), for all three bundles.

`check_properties` of each config and `verify_net_in_out` are in the bundles' own tests as well; here they stand for the files as shipped.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import synboost_monai

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import write_bundles  # noqa: E402

BUNDLES = ("echo_semantic_diffusion", "echo_clipseg", "echo_cris")
SCHEMA = Path(__file__).with_name("metadata_schema.json")
LARGEST_FILE_MB = 25
"""Of a file in the zoo's repository; larger ones are named in large_files.yml."""
README_SECTIONS = (
    "# Model Title",
    "### **Authors**",
    "### **Tags**",
    "## **Model Description**",
    "## **Data**",
    "#### **Preprocessing**",
    "## **Performance**",
    "#### **Training**",
    "#### **Inference**",
    "## **System Configuration**",
    "## **Limitations**",
    "## **Citation Info**",
    "## **References**",
    "# **License**",
)
"""Headings of the zoo's template that fit these bundles, in its order."""


@pytest.fixture(params=BUNDLES)
def bundle_dir(request: pytest.FixtureRequest) -> Path:
    return ROOT / "bundles" / str(request.param)


def metadata(bundle_dir: Path) -> dict[str, Any]:
    return json.loads((bundle_dir / "configs/metadata.json").read_text(encoding="utf-8"))


def test_necessary_files(bundle_dir: Path) -> None:
    configs = ("metadata.json", "inference.yaml", "train.yaml", "logging.conf")
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", *(f"configs/{config}" for config in configs)):
        assert (bundle_dir / name).stat().st_size > 0, name
    assert "Apache License" in (bundle_dir / "LICENSE").read_text(encoding="utf-8")
    large = [path for path in bundle_dir.rglob("*") if path.is_file() and path.stat().st_size > LARGEST_FILE_MB * 1e6]
    assert [path for path in large if path.parent.name != "models"] == []


@pytest.mark.parametrize(("bundle", "name"), [("echo_cris", "clip-rn50"), ("echo_clipseg", "clipseg-rd64-refined")])
def test_large_files_are_public_weights_to_start_from(
    bundle: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI would fetch and check the same file as `synboost weights`."""
    import monai.bundle.scripts
    from monai.bundle import download_large_files

    from synboost_monai.weights import find_weights

    shutil.copy(ROOT / "bundles" / bundle / "large_files.yml", tmp_path)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(monai.bundle.scripts, "download_url", lambda **entry: asked.append(entry))
    download_large_files(bundle_path=str(tmp_path))

    known = find_weights(name)
    expected = {"filepath": str(tmp_path / "models/start" / known.file_name), "url": known.url}
    if known.sha256 is not None:
        expected |= {"hash_val": known.sha256, "hash_type": "sha256"}
    assert [{**entry, "filepath": str(entry["filepath"])} for entry in asked] == [expected]
    text = (ROOT / "bundles" / bundle / "large_files.yml").read_text(encoding="utf-8")
    assert f"--init_checkpoint models/start/{known.file_name}" in text and known.licence in text


def test_a_bundle_says_whether_it_has_own_weights(bundle_dir: Path) -> None:
    """models/model.pt is in no list of files to fetch, and eval_metrics claims what weights in the bundle reached, or nothing."""
    path = bundle_dir / "large_files.yml"
    files = yaml.safe_load(path.read_text(encoding="utf-8"))["large_files"] if path.exists() else []
    assert "models/model.pt" not in [entry["path"] for entry in files]
    has_weights = (bundle_dir / "models/model.pt").exists()
    assert ("publishes no weights" in (bundle_dir / "docs/README.md").read_text(encoding="utf-8")) is not has_weights
    assert bool(metadata(bundle_dir)["eval_metrics"]) is has_weights


def test_metadata_is_valid(bundle_dir: Path, tmp_path: Path) -> None:
    """`python -m monai.bundle verify_metadata` runs offline: a schema that exists already is not downloaded."""
    from monai.bundle import verify_metadata

    schema = tmp_path / "schema.json"
    shutil.copy(SCHEMA, schema)
    verify_metadata(meta_file=str(bundle_dir / "configs/metadata.json"), filepath=str(schema))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numpy_version": None}, "numpy_version"),
        ({"network_data_format": {"inputs": {"image": {"type": "image"}}, "outputs": {"pred": 1}}}, "is not valid"),
        ({"schema": "https://somewhere/meta_schema_20220324.json"}, "does not match"),
    ],
)
def test_the_schema_refuses_what_the_zoo_refuses(change: dict[str, Any], message: str) -> None:
    import jsonschema

    content = {**metadata(ROOT / "bundles/echo_cris"), **change}
    content = {key: value for key, value in content.items() if value is not None}
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(content, json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_version_has_a_line_in_the_changelog(bundle_dir: Path) -> None:
    content = metadata(bundle_dir)
    assert content["version"] in content["changelog"]
    numbers = [tuple(int(n) for n in version.split(".")) for version in content["changelog"]]
    assert numbers == sorted(numbers, reverse=True) and content["version"] == next(iter(content["changelog"]))


def test_versions_are_those_of_the_constraints(bundle_dir: Path) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins: dict[str, str] = {}
    for line in lines:
        name, _, version = line.partition(";")[0].strip().partition("==")
        pins.setdefault(name, version)  # the first line of a package is that of Python 3.11
    content = metadata(bundle_dir)
    asked = {**content["required_packages_version"], "monai": content["monai_version"]}
    asked |= {"torch": content["pytorch_version"], "numpy": content["numpy_version"]}
    assert asked.pop("synboost-monai") == synboost_monai.__version__
    assert asked == {name: pins.get(name) for name in asked}


def test_intended_use_is_no_diagnosis(bundle_dir: Path) -> None:
    assert "Not for diagnosis" in metadata(bundle_dir)["intended_use"]


def test_names_are_those_that_monai_label_and_monai_deploy_read(bundle_dir: Path) -> None:
    formats = metadata(bundle_dir)["network_data_format"]
    assert next(iter(formats["inputs"])) == "image" and list(formats["outputs"]) == ["pred"]
    assert len(formats["inputs"]["image"]["spatial_shape"]) == 2
    for tensor in (*formats["inputs"].values(), *formats["outputs"].values()):
        assert isinstance(tensor, dict), "MONAI Deploy asks every input for its type"
        assert list(tensor["channel_def"])[: tensor["num_channels"]] == [str(i) for i in range(tensor["num_channels"])]
    if bundle_dir.name != "echo_semantic_diffusion":
        assert list(formats["inputs"]) == ["image"]


def test_readme_follows_the_template(bundle_dir: Path) -> None:
    text = (bundle_dir / "docs/README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ .*$", text, flags=re.MULTILINE)
    places = [headings.index(section) for section in README_SECTIONS]
    assert places == sorted(places)
    assert "not for diagnosis" in text.lower()
    for reference in metadata(bundle_dir)["references"]:
        link = re.search(r"https://\S+", reference)
        assert link is not None and link.group() in text


def test_every_config_is_a_known_kind(bundle_dir: Path) -> None:
    """The first line of a config says what it does; configs name only classes of MONAI, torch, ignite, Python and this package."""
    for path in sorted((bundle_dir / "configs").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# "), path.name
        targets = re.findall(r"_target_: (\S+)", text)
        assert all(
            "." not in t or t.lstrip("$").startswith(("synboost_monai.", "monai.", "torch.", "ignite.", "operator."))
            for t in targets
        ), path.name


def test_the_bundles_are_written_from_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    done = write_bundles.main(["--check"])
    assert done == 0, f"change scripts/segmenter_bundle, then run scripts/write_bundles.py:\n{capsys.readouterr().out}"


def test_a_new_setting_of_a_training_is_one_of_its_recipe() -> None:
    config = (write_bundles.DIFFUSION_CONFIGS / "train.yaml").read_text(encoding="utf-8")
    config = config.replace("\nbatch_size: 12", "\nnovelty: 1\nbatch_size: 12", 1)
    recipe = yaml.safe_load(write_bundles.with_recipe(config))["recipe"]
    assert list(recipe)[list(recipe).index("novelty") :][:2] == ["novelty", "batch_size"]
    assert recipe["novelty"] == "@novelty" and recipe["preset"] == "$@facts['preset']"
    assert not {"output_dir", "device", "num_workers"} & set(recipe)


def test_a_new_structure_is_a_class_of_each_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_bundles, "CLASS_NAMES", write_bundles.CLASS_NAMES | {"4": "novel_part"})
    monkeypatch.setattr(write_bundles, "SECTOR_CLASS_NAMES", write_bundles.SECTOR_CLASS_NAMES | {"5": "novel_part"})
    monkeypatch.setattr(write_bundles, "STRUCTURES", (None,) * 4)
    written = {path.parts[-3]: text for path, text in write_bundles.bundle_files() if path.name == "metadata.json"}
    for name, text in written.items():
        content = json.loads(text)
        formats = content["network_data_format"]
        is_diffusion = name == "echo_semantic_diffusion"
        tensor = formats["inputs"]["label_onehot"] if is_diffusion else formats["outputs"]["pred"]
        assert content["label_classes"].endswith("3 left atrium, 4 novel part")
        assert tensor["num_channels"] == (6 if is_diffusion else 4)
        assert list(tensor["channel_def"].items())[-1] == ("5" if is_diffusion else "4", "novel_part")
    assert set(written) == {"echo_semantic_diffusion", "echo_clipseg", "echo_cris"}


def test_a_third_segmenter_gets_its_own_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load(write_bundles.VALUES.read_text(encoding="utf-8"))
    table = tmp_path / "values.yaml"
    table.write_text(yaml.safe_dump({"echo_novel": {**values["echo_clipseg"], "architecture": "novel"}}))
    monkeypatch.setattr(write_bundles, "VALUES", table)
    monkeypatch.setattr(write_bundles, "ARCHITECTURES", {"cris", "clipseg", "novel"})
    monkeypatch.setattr(write_bundles, "ROOT", tmp_path)
    assert write_bundles.main([]) == 0 and write_bundles.main(["--check"]) == 0
    config = yaml.safe_load((tmp_path / "bundles/echo_novel/configs/inference.yaml").read_text(encoding="utf-8"))
    assert config["network_def"]["architecture"] == "novel"
    assert (
        write_bundles.rendered("{{cris}}a\n{{novel}}b\n{{size}}\n", {"architecture": "novel", "size": "c"}) == "b\nc\n"
    )
