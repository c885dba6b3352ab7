"""Test the command line: verbs, flags, and the results of mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from synboost_monai import __version__, command_line
from synboost_monai.__main__ import VERBS, main


def _run(*words: str, capsys) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command in this process."""
    code = 0
    try:
        main(words)
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    return code, out, err


def checked_arguments(words: list[str]) -> list[str]:
    return command_line.checked_arguments(words, VERBS)


def test_without_a_verb_the_verbs_are_listed(capsys):
    code, out, err = _run(capsys=capsys)
    assert (code, err) == (0, "")
    assert all(f"\n  {verb}" in out for verb in VERBS)


def test_version(capsys):
    assert _run("version", capsys=capsys) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["phantm"], "no such verb; did you mean phantom?"),
        (["version", "3"], "unexpected word '3'"),
        (["version", "--loud"], "unknown flag --loud"),
        (["prepare", "somewhere"], "OUTPUT_DIR is missing"),
        (["prepare", "a", "b", "--splt", "paper"], "unknown flag --splt; did you mean split?"),
        (["prepare", "a", "b", "--seed", "x"], "--seed must be int, got 'x'"),
        (["prepare", "a", "b", "--seed"], "--seed needs a value"),
        (["prepare", "a", "b", "c"], "unexpected word 'c'"),
        (["prepare", "nowhere", "b"], "nowhere does not exist"),
        (["phantom", "out", "--num_patient", "3"], "unknown flag --num_patient; did you mean num_patients?"),
        (["run", "echo_cri", "train"], "no bundle 'echo_cri'; did you mean echo_cris?"),
        (["run", "echo_cris", "inferense"], "no config 'inferense'; did you mean inference?"),
        (
            ["run", "echo_cris", "inference", "--dataset_dirr", "x"],
            "unknown key --dataset_dirr; did you mean dataset_dir?",
        ),
        (["experiment", "quickstrat"], "no study 'quickstrat'; did you mean quickstart?"),
        (["experiment", "camus_small"], "this study brings no data; give --dataset PATH"),
        (["label-maps", "nowhere", "out"], "nowhere: no such file or folder"),
        (["label_maps", "a", "b", "--num_map", "3"], "unknown flag --num_map; did you mean num_maps?"),
        (["label-map", "a", "b"], "no such verb; did you mean label-maps?"),
        (["merge", "out"], "no folder to merge was given"),
        (["merge", "out", "nowhere", "0012"], "nowhere"),
        (["merge"], "OUTPUT_DIR is missing"),
        (["report", "nowhere"], "nowhere is no run of a study"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = _run(*words, capsys=capsys)
    assert code == 2
    assert message in err
    assert err.startswith(f"synboost {words[0]}: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_values_arrive_in_their_types():
    words = ["prepare", "0012", "a,b", "--strict", "--seed", "-3", "--training-fraction=0.5"]
    assert checked_arguments(words) == [
        "prepare",
        "--dataset='0012'",
        "--output_dir='a,b'",
        "--strict=True",
        "--seed=-3",
        "--training_fraction=0.5",
    ]
    assert checked_arguments(["merge", "out", "0012", "a,b"]) == ["merge", "--output_dir='out'", "'0012'", "'a,b'"]
    assert checked_arguments(["prepare", "--strict", "a", "b"])[-1] == "--strict=True"
    assert checked_arguments(["prepare", "a", "b", "--strict", "false"])[-1] == "--strict=False"
    assert checked_arguments(["prepare", "a", "b", "--nostrict"])[-1] == "--strict=False"
    assert checked_arguments(["label", "a", "--token", "--port", "1"])[2:4] == ["--token=True", "--port=1"]
    assert checked_arguments(["label", "a", "--token", "0012"])[2] == "--token='0012'"
    words = ["--prompt", "left atrium, it's", "--train::trainer::max_epochs=2", "--prompt2", ""]
    read = ['--prompt="left atrium, it\'s"', "--train::trainer::max_epochs='2'", "--prompt2=''"]
    assert checked_arguments(["run", "echo_cris", "inference", *words])[3:] == read


def test_a_verb_of_two_words_is_taken_with_hyphen_or_underscore(capsys):
    words = ["a", "b", "--num-maps", "3", "--phase", "end_systole"]
    read = checked_arguments(["label-maps", *words])
    assert read == checked_arguments(["label_maps", *words])
    assert read == ["label-maps", "--dataset='a'", "--output_dir='b'", "--num_maps=3", "--phase='end_systole'"]
    assert "\n  label-maps" in _run(capsys=capsys)[1]


def test_traceback_is_kept_on_request(monkeypatch):
    monkeypatch.setenv("SYNBOOST_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no such verb"):
        main(["nothing"])


def test_help_of_a_verb_names_its_arguments_and_is_quick():
    code = "import sys; from synboost_monai.__main__ import main\ntry: main(['prepare', '--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0
    assert "training_fraction" in done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("False")  # nothing heavy is imported for help


def test_prepare_writes_a_datalist(tmp_path, capsys):
    small = ("--num_patients=3", "--image_height=64", "--num_frames=2")
    assert _run("phantom", str(tmp_path / "p"), *small, capsys=capsys)[0] == 0
    code, out, _ = _run("prepare", str(tmp_path / "p"), str(tmp_path / "real"), capsys=capsys)
    assert code == 0
    assert "training" in out and str(tmp_path / "real" / "datalist.json") in out
    assert (tmp_path / "real" / "summary.txt").is_file()


def test_matplotlib_takes_no_settings_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 77")
    code = "from synboost_monai.__main__ import main; main(['version']); import matplotlib; print(matplotlib.rcParams['lines.linewidth'])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "1.5", done.stderr


@pytest.mark.parametrize(
    ("words", "sequences"),
    [(["a/b.AVI"], True), (["b.mp4", "--sequences", "false"], "false"), (["folder"], None), (["a.nii.gz"], None)],
)
def test_a_clip_by_its_name_is_segmented_frame_by_frame(words, sequences, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "synboost_monai.bundle_run.run_bundle", lambda bundle, config, overrides: seen.update(overrides)
    )
    main(["segment", "echo_cris", "--dataset_dir", *words])
    assert seen.get("sequences") == sequences
