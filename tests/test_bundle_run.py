"""Test finding bundles, checking overrides, and the errors of a run."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from synboost_monai.bundle_run import (
    as_literal,
    bundle_dir,
    bundle_names,
    check_overrides,
    config_files,
    config_parser,
    literal,
    run_bundle,
)
from synboost_monai.errors import one_line, user_error
from synboost_monai.model_card import PUBLISHED_FACTS

CONFIG = """\
bundle_root: .
dataset_dir: data
output_dir: $@bundle_root + '/eval'
checkpoint_path: null
device: cpu
max_epochs: 10
learning_rate: 0.002
augment: true
prompt: ''
sections: [training]
network_def: {_target_: torch.nn.Conv2d, in_channels: 1, out_channels: 2, kernel_size: 3}
train:
  trainer: {_target_: SupervisedTrainer, max_epochs: '@max_epochs'}
run:
- _target_: bundle_code.work
  dataset_dir: '@dataset_dir'
  output_dir: '@output_dir'
  max_epochs: '@max_epochs'
  prompt: '@prompt'
"""
CODE = """\
import json
from pathlib import Path

from monai.data import DataLoader, Dataset


def fail(x):
    raise ValueError(f"camus.py: {x} is broken; fetch it again")


def work(dataset_dir, output_dir, max_epochs, prompt):
    if dataset_dir == "bad_file":
        list(DataLoader(Dataset([1], fail), num_workers=0))
    if dataset_dir == "missing":
        open("/no/such/file")
    if dataset_dir == "our_fault":
        raise KeyError("our fault")
    path = Path(output_dir)
    path.mkdir(parents=True)
    (path / "got.json").write_text(json.dumps([dataset_dir, max_epochs, prompt]))
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Make a bundle whose only stage writes its settings to a file."""
    configs = tmp_path / "echo_toy" / "configs"
    configs.mkdir(parents=True)
    (configs / "inference.yaml").write_text(CONFIG)
    (configs / "evaluate.yaml").write_text("section: testing\ntrain::trainer::amp: false\n")
    (configs / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    (tmp_path / "echo_toy" / "bundle_code.py").write_text(CODE)
    return tmp_path / "echo_toy"


def test_bundles_are_found_by_name_and_by_path(bundle, monkeypatch):
    assert bundle_dir(bundle) == bundle
    monkeypatch.setenv("SYNBOOST_BUNDLES", str(bundle.parent))
    assert bundle_dir("echo_toy") == bundle
    with pytest.raises(FileNotFoundError, match="no bundle 'echo_toyy'; did you mean echo_toy"):
        bundle_dir("echo_toyy")


def test_what_lies_in_the_working_directory_is_no_bundle_and_no_config_unless_the_word_has_a_slash(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming = tmp_path / "incoming"
    for name in ("echo_cris", "echo_toy"):
        (incoming / name / "configs").mkdir(parents=True)
        (incoming / name / "configs/inference.yaml").write_text("run: [$1 / 0]\n")
    for name in ("inference", "inference.yaml", "evil.yaml"):
        (incoming / name).write_text("run: [$1 / 0]\n")
    monkeypatch.chdir(incoming)
    assert bundle_dir("echo_cris").parent.name == "bundles"
    assert bundle_dir("./echo_cris") == bundle_dir(Path("echo_cris")) == incoming / "echo_cris"
    with pytest.raises(FileNotFoundError, match=r"no bundle 'echo_toy'.* with a slash, .* such as \./echo_toy"):
        bundle_dir("echo_toy")
    monkeypatch.chdir(incoming / "echo_toy")
    assert bundle_dir(".") == incoming / "echo_toy"
    monkeypatch.chdir(incoming)
    assert config_files(bundle, "inference") == [bundle / "configs/inference.yaml"]
    for name in ("evil.yaml", "inference,evil.yaml"):
        with pytest.raises(FileNotFoundError, match="has no config 'evil.yaml'"):
            config_files(bundle, name)
    assert config_files(bundle, ["inference", "./evil.yaml"])[1] == incoming / "evil.yaml"


def test_a_config_without_network_is_merged_onto_its_base(bundle):
    assert [f.name for f in config_files(bundle, "inference")] == ["inference.yaml"]
    assert [f.name for f in config_files(bundle, "evaluate")] == ["inference.yaml", "evaluate.yaml"]
    assert [f.name for f in config_files(bundle, "inference,evaluate")] == ["inference.yaml", "evaluate.yaml"]
    with pytest.raises(
        FileNotFoundError, match=r"no config 'inferense'; did you mean inference\?; it has evaluate, inf"
    ):
        config_files(bundle, "inferense")


def test_overrides_come_out_in_the_config_s_types(bundle):
    files = config_files(bundle, "evaluate")
    given = {
        "max_epochs": "3",
        "learning_rate": "1e-4",
        "augment": "false",
        "prompt": "left atrium, please",
        "dataset_dir": "0012",
        "checkpoint_path": "model.pt",
        "sections": "['training', 'validation']",
        "section": "5",
        "train::trainer::max_epochs": "3",  # in the type of what the reference leads to
        "train#trainer#amp": "true",
        "network_def::padding": 1,  # an argument of Conv2d that the config does not name
        "device": "cuda:1",
    }
    assert check_overrides(files, given) == {
        "max_epochs": 3,
        "learning_rate": 1e-4,
        "augment": False,
        "prompt": "left atrium, please",
        "dataset_dir": "0012",
        "checkpoint_path": "model.pt",
        "sections": ["training", "validation"],
        "section": "5",
        "train::trainer::max_epochs": 3,
        "train#trainer#amp": True,
        "network_def::padding": 1,
        "device": "cuda:1",
    }


TEXTS = (
    "study #2",
    "#",
    "##up",
    "a::b",
    "$__import__('pathlib').Path('ran').touch()",
    "$import pathlib",
    "$@dataset_dir + 'x'",
    "@dataset_dir",
    "@::x and %::x",
    "an @dataset_dir within",
    "%dataset_dir",
    "%/no/file.yaml::key",
    "100 %",
    "+more",
    "~home",
    "\\#\\\\# 'one' \"two\" \\",
    "two\nlines\t",
    "Gr\u00f6\u00dfe \u2028 \U0001f600 \udcff",
    "[left atrium",
    "{1: 2",
    "  spaces  ",
    "None $",
    "__local_refs['dataset_dir']#",
)
"""What people and their files may be called."""


@pytest.mark.parametrize("text", TEXTS)
def test_text_reaches_a_run_as_it_is(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / text.replace("/", "_")
    values = {"output_dir": str(folder), "dataset_dir": text, "prompt": text}
    run_bundle(bundle, "inference", values)
    assert json.loads((folder / "got.json").read_text()) == [text, 10, text]
    assert not Path("ran").exists()


def test_a_bundle_s_own_folder_may_be_called_anything(bundle: Path, tmp_path: Path) -> None:
    moved = bundle.rename(tmp_path / "$x #2 @y %z")
    run_bundle(moved, "inference", {})
    assert (moved / "eval" / "got.json").is_file()


@pytest.mark.parametrize("name", bundle_names())
def test_each_text_of_a_shipped_config_is_what_was_given(name: str) -> None:
    for file in sorted((bundle_dir(name) / "configs").glob("*.yaml")):
        files = config_files(name, file.stem)
        config = yaml.safe_load(file.read_text())
        keys = [k for k, v in config.items() if v is None or isinstance(v, str) and k != "device" and "::" not in k]
        keys = [k for k in keys if not any(k in facts for facts in PUBLISHED_FACTS.values())]  # checked at the door
        for shift in (0, 8):  # each key gets two of the texts, each text goes to several keys
            given = {key: TEXTS[(i + shift) % len(TEXTS)] for i, key in enumerate(keys)}
            checked = check_overrides(files, {key: text for key, text in given.items() if key != "prompt"})
            parser = config_parser(files, {**given, **checked})  # no prompt passes the check with such words
            assert {key: parser.get_parsed_content(key) for key in keys} == given


@pytest.mark.parametrize("key", ["prompt", "displayable_configs::prompt"])
@pytest.mark.parametrize("config", ["inference", "evaluate", "deploy"])
def test_a_prompt_that_nobody_taught_is_refused_before_anything_is_loaded(key: str, config: str) -> None:
    for name in ("echo_cris", "echo_clipseg"):
        with pytest.raises(ValueError, match="the right ventricle is not among the structures"):
            check_overrides(config_files(name, config), {key: "the RV"})
        assert check_overrides(config_files(name, config), {key: "the LV"}) == {key: "the LV"}


@pytest.mark.parametrize(
    "value",
    [
        [["$1"], ("a#b",), 1.5, None, True],
        {"_target_": "os.system", "command": "true"},
        {"key": {"_target_": "os.system"}},
        {"a#b": 1, "c::d": {"$e": math.inf}, 3: "@f"},
    ],
)
def test_lists_and_mappings_are_what_they_say(value: Any) -> None:
    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: plain(inner) for key, inner in part.items()}
        return [plain(inner) for inner in part] if isinstance(part, (list, tuple)) else part

    literal_value = as_literal(value)
    assert not set("@%#") & set(literal_value) and literal_value.count("$") == 1
    parser = config_parser([], {"given": value, "user": {"_target_": "builtins.repr", "obj": "@given"}})
    assert parser.get_parsed_content("given") == plain(value)


def test_plain_values_stay_as_a_config_has_them() -> None:
    for value in ("left atrium", 3, None, ["P1", "P2"], {"a": [1]}, "a::b", Path("x#y")):
        assert as_literal(value) is value


def test_places_and_prompts_are_text_whatever_they_look_like(bundle: Path) -> None:
    files = config_files(bundle, "inference")
    for text in ("[out]", "00012", "1e3", "true", "{'_target_': 'os.system'}"):
        given = {"output_dir": text, "checkpoint_path": text, "prompt": text}
        assert check_overrides(files, given) == given
    assert check_overrides(files, {"checkpoint_path": "null"}) == {"checkpoint_path": None}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dataset_dirr", "x", r"echo_toy/inference.yaml: unknown key --dataset_dirr; did you mean dataset_dir\?"),
        ("zzz", "x", "unknown key --zzz; it has bundle_root, dataset_dir, .*run$"),
        ("train::trainer::max_epoch", 1, r"did you mean train::trainer::max_epochs\?"),
        ("network_def::paddin", 1, "unknown key --network_def::paddin"),
        ("train::trainr::max_epochs", 1, "unknown key"),
        ("max_epochs", "many", "--max_epochs must be a number like 10, got 'many'"),
        ("max_epochs", "true", "--max_epochs must be a number"),
        ("augment", "3", "--augment must be true or false, got 3"),
        ("train::trainer::max_epochs", "$1 + 1", "--train::trainer::max_epochs must be a number like 10, got '\\$1"),
        ("device", "$torch.device('cpu')", r"--device must be a device such as cpu, cuda or cuda:1, got"),
        (
            "network_def",
            "{'_target_': 'os.system'}",
            "--network_def is a component; .* such as --network_def::in_channels",
        ),
        ("network_def::_target_", "os.system", "--network_def::_target_ says what is called; write it into a config"),
        ("tracking", {"handlers_id": {}}, "--tracking must be text, got {'handlers_id'"),
        ("dataset_dir", None, "--dataset_dir must be text like 'data', got None"),
    ],
)
def test_a_bad_override_is_refused_before_anything_is_written(bundle, key, value, message):
    before = sorted(bundle.rglob("*"))
    with pytest.raises(ValueError, match=message):
        run_bundle(bundle, "inference", {key: value})
    assert sorted(bundle.rglob("*")) == before


def test_lists_are_read_as_a_config_writes_them(bundle):
    files = config_files(bundle, "evaluate")
    for text in ("[training, validation]", "['training', 'validation']", '["training","validation"]'):
        assert check_overrides(files, {"sections": text}) == {"sections": ["training", "validation"]}
    with pytest.raises(ValueError, match=r"--sections must be a list like \[a, b\], got '\[a: b: c\]'"):
        check_overrides(files, {"sections": "[a: b: c]"})


def test_run_bundle_runs_the_config_with_overrides(bundle, tmp_path):
    run_bundle(bundle, "inference", {"output_dir": str(tmp_path / "out"), "max_epochs": "4", "prompt": "left, atrium"})
    assert json.loads((tmp_path / "out" / "got.json").read_text()) == ["data", 4, "left, atrium"]
    run_bundle(bundle, "inference", {})
    assert (bundle / "eval" / "got.json").is_file()  # bundle_root is the bundle's folder


def test_errors_of_the_user_come_out_of_a_run_unwrapped(bundle):
    with pytest.raises(ValueError, match="^camus.py: 1 is broken; fetch it again$"):
        run_bundle(bundle, "inference", {"dataset_dir": "bad_file"})
    with pytest.raises(FileNotFoundError) as caught:
        run_bundle(bundle, "inference", {"dataset_dir": "missing"})
    assert one_line(caught.value) == "/no/such/file: no such file or directory; check the path"


def test_other_errors_stay_as_they_are(bundle):
    with pytest.raises(RuntimeError) as caught:
        run_bundle(bundle, "inference", {"dataset_dir": "our_fault"})
    assert isinstance(caught.value.__cause__, KeyError)


def _broken(item):
    try:
        raise ValueError("deep inside")
    except ValueError as error:
        raise ValueError(f"camus.py: {item} is broken") from error


def test_an_error_in_a_worker_process_is_found_in_its_text():
    loader = DataLoader(Dataset([3], Compose([_broken])), num_workers=1)
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    assert str(user_error(caught.value)) == "camus.py: 3 is broken"


def test_the_friendliest_error_of_a_chain_is_taken():
    try:
        try:
            _broken(7)
        except ValueError as error:
            raise RuntimeError("Failed to instantiate component\n and more") from error
    except RuntimeError as error:
        assert str(user_error(error)) == "camus.py: 7 is broken"
    assert user_error(RuntimeError("CUDA error")) is None
    assert one_line(ValueError("two\n  lines")) == "two lines"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("True", True),
        ("false", False),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("P2", "P2"),
        ("a,b", "a,b"),
    ],
)
def test_literal(text, value):
    assert literal(text) == value


def test_log_records_are_whole_again_after_a_run(bundle, tmp_path, caplog):
    run_bundle(bundle, "inference", {"output_dir": str(tmp_path / "out")})
    try:
        torch.zeros(1)[3]
    except IndexError:
        logging.getLogger("synboost").exception("seen")
    assert "seen" in caplog.text


def test_recipe_s_text_can_be_set_back_to_null() -> None:
    files = config_files("echo_cris", "train_small")
    assert check_overrides(files, {"image_encoder_weights": "null"}) == {"image_encoder_weights": None}
    assert check_overrides(files, {"prompt_level": "[P1, P2]"}) == {"prompt_level": ["P1", "P2"]}
