"""Test a study's DAG, and runs that fail, go on, or lose their owner."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from synboost_monai.processes import told_to_end
from synboost_monai.study import run
from synboost_monai.study.dag import KINDS
from synboost_monai.study.run import PROFILES_DIR, run_study
from synboost_monai.study.settings import read_study
from synboost_monai.study.stage import run_stage

FULL = {"segmenters.strategies": ["real", "synthetic_then_real"], "segmenters.prompts": "P2,P7"}


def test_dry_run_lists_the_stages_in_order_and_writes_nothing(study_path, tiny_bundles, tmp_path, capfd):
    output = tmp_path / "run"
    assert run_study(study_path, output=output, dry_run=True, settings=FULL) is None
    lines = capfd.readouterr().out.splitlines()
    study = read_study(study_path, settings=FULL)
    assert lines[0] == f"{len(study.stages)} of {len(study.stages)} stages would run in {output}"
    assert lines[lines.index("") + 1 :] == list(study.stages)
    assert "  train                 6  train a segmenter" in lines and "  phantom               1" in lines[1]
    assert not output.exists()


def test_a_folder_of_other_things_is_not_written_to(study_path, tiny_bundles, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(ValueError, match="holds other things than a study's run"):
        run_study(study_path, output=tmp_path / "mine")
    with pytest.raises(ValueError, match="--cores must be at least 1"):
        run_study(study_path, output=tmp_path / "run", cores=0)


def test_a_study_runs_goes_on_after_a_failure_and_repeats_nothing(
    study_path, tiny_bundles, tmp_path, capfd, monkeypatch, request
):
    incoming = tmp_path / "incoming"  # somebody else's folder: nothing in it is run or read
    (incoming / "profiles" / "default").mkdir(parents=True)
    (incoming / "profiles" / "default" / "config.yaml").write_text("executor: evil")
    for name in ("yaml", "torch", "numpy", "snakemake", "synboost_monai", "sitecustomize"):
        (incoming / f"{name}.py").write_text(f"open('{incoming}/ran', 'w'); raise SystemExit(9)")
    monkeypatch.chdir(incoming)
    output = tmp_path / "out {x} #2 $(touch ran) 'q' %s @y"
    (tmp_path / "file").touch()  # no folder of caches can be made: as where HOME cannot be written
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(SystemExit) as caught:
        run_study(study_path, output=output, settings={"segmenters.train.max_epochs": 13})
    assert caught.value.code == 2
    err = capfd.readouterr().err
    assert "synboost run: fake_stage.py: 13 epochs bring bad luck; take 12\n" in err
    why = "stage train_cris_real_P1_seed0 failed with code 2 (synboost run: fake_stage.py: 13 epochs bring bad luck; take 12)"
    assert f"synboost experiment: {why}; the same command goes on from there" in err
    assert (output / ".snakemake" / "cache").is_dir()
    assert "Traceback" not in err
    assert not (output / "report.html").exists()
    assert not list(tmp_path.rglob("ran"))

    request.getfixturevalue("python_forks")
    report_path = run_study(study_path, output=output)
    assert report_path == output / "report.html" and report_path.is_file()
    err = capfd.readouterr().err
    assert "phantom data set" not in err and "[3/5] train cris" in err
    timing = json.loads((output / "timing" / "train_cris_real_P1_seed0.json").read_text())
    assert timing["seconds"] > 0 and "--max_epochs=2" in timing["command"]
    settings = yaml.safe_load((output / "study.yaml").read_text())
    assert settings["segmenters"]["train"] == {"max_epochs": 2}

    written = {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file() and ".snakemake" not in p.parts}
    assert run_study(study_path, output=output) == report_path
    assert {p.name for p, then in written.items() if p.stat().st_mtime_ns != then} <= {".lock"}

    model_path = output / "segmenters/cris/real/P1/seed0/model.pt"
    evaluate = "evaluate_cris_real_P1_seed0"
    report_path.unlink()
    assert _planned(study_path, output, monkeypatch) == {"report"}
    model_path.write_text("changed by hand: new to what follows")
    assert _planned(study_path, output, monkeypatch) == {evaluate, "report"}
    assert model_path.read_text().startswith("changed by hand")
    model_path.unlink()
    capfd.readouterr()
    run_study(study_path, output=output, dry_run=True)
    assert capfd.readouterr().out.splitlines()[-3:] == ["train_cris_real_P1_seed0", evaluate, "report"]
    assert _planned(study_path, output, monkeypatch) == {"train_cris_real_P1_seed0", evaluate, "report"}
    assert not list(tmp_path.rglob("ran"))


def _planned(study_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the stages that Snakemake would do again, in place of doing them."""
    snakemake, named = run._snakemake, set()

    def dry_run(study_path: Path, run_dir: Path, cache_dir: Path, *_: str) -> subprocess.CompletedProcess:
        done = snakemake(study_path, run_dir, cache_dir, "--cores", "1", "--dry-run", is_quiet=True)
        named.update(re.findall(r"^ *output: timing/(\S+)\.json$", done.stdout + done.stderr, re.MULTILINE))
        return done

    with monkeypatch.context() as patch:
        patch.setattr(run, "_snakemake", dry_run)
        run_study(study_path, output=output)
    return named


def _python(code: str, output_dir: str | None = None, inputs: tuple[str, ...] = ()) -> int:
    """Make one stage whose command is a line of Python, in the working directory; return its exit code."""
    return run_stage("s", "S", output_dir, inputs, 1, ["python", "-c", code], threads=3)


def test_a_stage_goes_on_only_with_the_same_command_and_inputs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    fails = "import os, pathlib; os.makedirs('out', exist_ok=True); p = pathlib.Path('out/state'); "
    fails += "p.write_text(p.read_text() + 'x' if p.exists() else 'x'); raise SystemExit(len(p.read_text()) < 3)"
    Path("timing").mkdir()

    def attempt() -> tuple[int, str]:
        return _python(fails, "out", ("input",)), Path("out/state").read_text()

    Path("input").write_text("1")
    assert [attempt(), attempt()] == [(1, "x"), (1, "xx")]  # the second attempt found the first one's state
    Path("input").write_text("12")
    assert attempt() == (1, "x")  # other inputs: from the start
    assert [attempt(), attempt()] == [(1, "xx"), (0, "xxx")]
    assert "goes on after an interruption" in capfd.readouterr().err
    assert json.loads(Path("timing/s.json").read_text())["attempts"] == 3
    assert attempt() == (1, "x")  # it was done: asked again, it starts anew


def test_a_stage_ends_when_its_study_is_gone(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run = "from synboost_monai.study.stage import run_stage; "
    run += "run_stage('s', 'S', None, [], 1, ['python', '-c', 'import time; time.sleep(60)'])"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment["SYNBOOST_STUDY_PROCESS"] = f"{platform.node()}:{owner.pid}"
    stage = subprocess.Popen([sys.executable, "-c", run], cwd=tmp_path, env=environment)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            stage.wait(2)
        owner.kill()
        owner.wait()
        assert stage.wait(100) == 137
    finally:
        for process in (owner, stage):
            process.kill()
    assert json.loads((tmp_path / ".stages" / "s.json").read_text())["status"] == "running"


def test_a_stage_on_another_machine_of_a_cluster_does_not_look_for_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNBOOST_STUDY_PROCESS", "another-machine:999999999")
    assert _python("import time; time.sleep(1)") == 0 and Path("timing/s.json").is_file()


def test_a_stage_is_told_its_threads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _python("import os, pathlib; pathlib.Path('threads').write_text(os.environ['OMP_NUM_THREADS'])") == 0
    assert Path("threads").read_text() == "3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"jobs": 4}, "--jobs is for a --profile, such as slurm"),
        ({"profile": "slrum"}, "no Snakemake profile 'slrum'; give slurm, or your own, such as ./slrum"),
    ],
)
def test_where_stages_run_must_make_sense(study_path, tiny_bundles, tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_study(study_path, output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_slurm_profile_knows_the_kinds_of_stages():
    profile = yaml.safe_load((PROFILES_DIR / "slurm" / "config.yaml").read_text())
    assert profile["executor"] == "slurm" and "gpu" in profile["default-resources"]["gres"]
    assert set(profile["set-resources"]) <= set(KINDS)
    trains = {"train_diffusion", "synthesise", "train", "evaluate"}
    assert not trains & set(profile["set-resources"])  # these have the GPU


def test_sigterm_is_passed_on_to_the_command_of_a_stage(tmp_path, monkeypatch):
    """The command ends in order, and the stage goes on from its folder the next time."""
    monkeypatch.chdir(tmp_path)
    Path("timing").mkdir()
    code = "import signal, sys, time, pathlib\n"
    code += "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('ended').touch(), sys.exit(143)))\n"
    code += "pathlib.Path('begun').touch()\ntime.sleep(60)"

    def end() -> None:
        while not Path("begun").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    with told_to_end():
        thread.start()
        assert _python(code) == 143
    thread.join(10)
    state = json.loads(Path(".stages/s.json").read_text())
    assert Path("ended").exists() and (state["status"], state["returncode"]) == ("failed", 143)


def test_error_of_snakemake_itself_is_shown(study_path, tiny_bundles, tmp_path, capfd, monkeypatch):
    """No stage failed, and the log is empty."""
    monkeypatch.setattr(run, "_has_caches", lambda: True)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(SystemExit):
        run_study(study_path, output=tmp_path / "run")
    err = capfd.readouterr().err
    assert "synboost experiment: Snakemake ended with code 1: NotADirectoryError: [Errno 20] Not a directory" in err
