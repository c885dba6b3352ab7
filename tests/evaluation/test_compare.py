"""Test the comparison of evaluations: its numbers, files and words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from synboost_monai.evaluation.compare import METRIC_TITLES, NO_PATIENTS, compare, run_names
from synboost_monai.evaluation.per_case import METRICS, PAPER_METRICS, read_metrics, write_metrics_csv
from synboost_monai.evaluation.statistics import compare_pairs, holm
from synboost_monai.files import sha256_of
from synboost_monai.pages.tables import to_text
from synboost_monai.structures import STRUCTURES

OPTIONS = {"num_resamples": 100, "seed": 3}


def write_run(path: Path, seed: int, bonus: float = 0.0, *, with_patients: bool = True, num_patients: int = 6) -> Path:
    """Write metrics.csv of two images per patient, where one atrium was missed."""
    generator = np.random.default_rng(seed)
    rows = []
    for patient in range(num_patients):
        for phase in ("end_diastole", "end_systole"):
            for structure in STRUCTURES:
                dice = generator.uniform(0.7, 0.8) + bonus
                is_missed = structure.name == "left_atrium" and patient == 0 and phase == "end_systole"
                facts = {"case": f"c{patient}_{phase}", "patient": f"p{patient}" if with_patients else None}
                facts |= {"view": None, "phase": phase, "structure": structure.name}
                measured = {"dice": 0.0, "iou": 0.0} if is_missed else {"dice": dice, "iou": dice / (2 - dice)}
                distances = dict.fromkeys(("hd_mm", "hd95_mm", "asd_mm"), None if is_missed else 10 * (1 - dice))
                empty = {"is_empty_prediction": is_missed, "is_empty_truth": False}
                rows.append(facts | measured | distances | empty)
    return write_metrics_csv(path, rows)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "runs" / name / "evaluation" for name in ("real", "synthetic", "both")]
    return [write_run(f / "metrics.csv", seed, 0.05 * (seed == 0)) for seed, f in enumerate(folders)]


def test_tables_hold_what_the_statistics_give(runs: list[Path]) -> None:
    means, tests, effects = compare(*runs[:2], **OPTIONS)
    frames = [read_metrics(path) for path in runs[:2]]
    expected = compare_pairs(*frames, metrics=METRICS, **OPTIONS)
    assert [t.name for t in (means, tests, effects)] == ["comparison", "comparison_tests", "comparison_effects"]
    assert means.frame["metric"].tolist() == [METRIC_TITLES[r["metric"]] for r in expected]
    p_values = [f"{level}{key}" for level in ("", "patient_") for key in ("wilcoxon_p", "wilcoxon_p_holm", "t_p")]
    for table, keys in (
        (means, ["mean_a", "std_b", "difference", "ci_low", "ci_high"]),
        (tests, p_values),
        (effects, ["std_difference", "hodges_lehmann", "cohens_dz", "rank_biserial"]),
    ):
        for key in keys:
            is_scaled = not key.endswith(("_p", "_holm", "_dz", "_biserial"))
            for found, record in zip(table.frame[key], expected):
                scale = 100 if is_scaled and record["metric"] in ("dice", "iou") else 1  # percent
                assert found == pytest.approx(scale * record[key], rel=1e-6), (key, record["metric"])
    assert set(tests.frame["tested"]) == {"a > b", "a < b"}


def test_text_says_what_is_compared(runs: list[Path]) -> None:
    means, tests, _ = map(to_text, compare(*runs[:2], metrics=["dice", "hd_mm"], **OPTIONS))
    lines = means.splitlines()
    assert lines[0] == "real against synthetic: means and differences"
    heads = "metric structure pairs left out patients real std synthetic std difference 95 % from to"
    assert lines[1].split() == heads.split()
    assert len([line for line in lines if line.startswith("HD, mm")]) == 4
    atrium = next(line for line in lines if line.startswith("HD, mm") and "left atrium" in line)
    assert atrium.split()[4:7] == ["11", "1", "6"]
    words = " ".join(tests.split())
    question = (
        "One-sided paired tests: is real (a) better than synthetic (b)? Distances are better where they are smaller."
    )
    assert question in words
    assert "over all 4 tests of one metric" in words
    assert "bootstrap that draws patients (BCa, 100 resamples, seed 3)" in " ".join(means.split())


def test_files_hold_the_inputs_and_the_command(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/opt/bin/synboost", "compare", "a", "b"])
    (runs[0].parent / "summary.json").write_text('{"section": "testing", "dataset_dir": "/data/camus"}')
    tables = compare(*runs[:2], output_dir=tmp_path / "out", **OPTIONS)
    names = [f"comparison{of}.{suffix}" for of in ("", "_effects", "_tests") for suffix in ("csv", "tex")]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"comparison.json", *names}
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["command"] == "synboost compare a b"
    assert [i["sha256"] for i in record["inputs"]] == [sha256_of(path) for path in runs[:2]]
    assert [i["name"] for i in record["inputs"]] == ["real", "synthetic"]
    assert {"python", "numpy", "scipy"} <= set(record["versions"])
    assert (record["seed"], record["num_resamples"], record["alternative"]) == (3, 100, "greater")
    assert len(record["records"]) == len(tables[0].frame) == 20
    written = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert written["difference"].tolist() == pytest.approx(tables[0].frame["difference"].tolist(), rel=1e-5)
    for table in tables:
        assert table.note.startswith("testing section of camus. ")
        assert table.note.endswith("Command: synboost compare a b")


def test_structures_that_were_never_found_are_dashes(runs: list[Path]) -> None:
    frame = pd.read_csv(runs[1])
    frame.loc[frame["structure"] == "left_atrium", ["hd_mm", "hd95_mm", "asd_mm"]] = None
    frame.to_csv(runs[1], index=False)
    means, tests, _ = compare(*runs[:2], metrics=["dice", "hd_mm"], **OPTIONS)
    rows = {" ".join(words[:-10]): words[-10:] for words in map(str.split, to_text(means).splitlines()[3:11])}
    assert rows["HD, mm left atrium"] == ["0", "12", *["–"] * 8]
    assert rows["HD, mm myocardium"][:3] == ["12", "0", "6"]  # whole numbers though one is missing
    assert "over all tests of one metric (up to 4)" in tests.note


def test_several_runs_are_compared_with_the_first(runs: list[Path]) -> None:
    means, tests, _ = compare(*runs, metrics=["dice"], **OPTIONS)
    assert means.frame["b"].tolist() == ["synthetic"] * 4 + ["both"] * 4
    single = [compare(runs[0], other, metrics=["dice"], **OPTIONS)[1].frame for other in runs[1:]]
    p = pd.concat(single)["wilcoxon_p"]
    assert tests.frame["wilcoxon_p"].tolist() == p.tolist()
    assert tests.frame["wilcoxon_p_holm"].tolist() == pytest.approx(holm(p.to_numpy()).tolist())
    assert "real against synthetic and both" in tests.title and "over all 8 tests" in tests.note
    assert [to_text(means).splitlines()[1].split()[i] for i in (0, 1, -1)] == ["compared", "run", "to"]


def test_files_without_patients_have_no_patient_level(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"{name}.csv", s, with_patients=False) for s, name in enumerate("ab")]
    tables = compare(*paths, **OPTIONS)
    for table in tables:
        assert not [c for c in table.frame if c.startswith(("patient", "ci_", "num_patients"))]
    assert NO_PATIENTS in tables[1].note and "bootstrap" not in tables[0].note
    assert tables[1].frame["wilcoxon_p"].notna().all()


def test_metrics_that_a_file_lacks_are_left_out(tmp_path: Path) -> None:
    new, old = (write_run(tmp_path / f"{name}.csv", s) for s, name in enumerate(("new", "old")))
    pd.read_csv(old).drop(columns=["hd_mm", "asd_mm"]).to_csv(old, index=False)
    shown = compare(new, old, **OPTIONS)[0].frame["metric"]
    assert list(dict.fromkeys(shown)) == ["Dice, %", "IoU, %", "HD95, mm"]
    with pytest.raises(ValueError, match="old has no hd_mm; evaluate it again, or leave it out"):
        compare(new, old, metrics=["hd_mm"], **OPTIONS)
    with pytest.raises(ValueError, match="no metric is called 'DICE'; there are dice, iou, hd_mm"):
        compare(new, old, metrics=["DICE"], **OPTIONS)
    assert tuple(METRIC_TITLES) == (*METRICS, *PAPER_METRICS)


def test_other_alternatives(runs: list[Path]) -> None:
    tables = compare(*runs[:2], names=["A", "B"], metrics=["dice"], alternative="two-sided", **OPTIONS)
    assert "Two-sided paired tests: is A (a) different from B (b)?" in tables[1].note
    assert set(tables[1].frame["tested"]) == {"a != b"}
    greater, less = (compare(*runs[:2], alternative=x, **OPTIONS)[1].frame["t_p"] for x in ("greater", "less"))
    assert (greater + less).tolist() == pytest.approx([1.0] * 20)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/x/real/P2/evaluation/metrics.csv", "runs/x/both/P2/evaluation/metrics.csv"], ["real", "both"]),
        (["a.csv", "b.csv"], ["a", "b"]),
        (["x/metrics.csv", "x/y/metrics.csv"], ["x", "x/y"]),
        (["x/a/metrics.csv", "x/b/metrics.csv", "y/a/metrics.csv"], ["x/a", "x/b", "y/a"]),
    ],
)
def test_runs_are_named_by_what_differs_in_their_paths(paths: list[str], names: list[str]) -> None:
    assert run_names([Path(path) for path in paths]) == names


def test_what_cannot_be_compared_is_named(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the same file is given twice"):
        compare(runs[0], runs[0].parent)
    with pytest.raises(ValueError, match="2 runs need as many different names, got one"):
        compare(*runs[:2], names=["one"])
    other = write_run(tmp_path / "runs" / "few" / "evaluation" / "metrics.csv", 5, num_patients=5)
    with pytest.raises(ValueError, match=r"real \(first\) and few \(second\): .*the second run lacks c5_end_diastole"):
        compare(runs[0], other)
    with pytest.raises(FileNotFoundError, match="no such file; expected metrics.csv"):
        compare(runs[0], tmp_path / "absent.csv")
