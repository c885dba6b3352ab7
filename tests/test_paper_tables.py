"""Test the paper's tables from a made file of the published form, and own runs beside them."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel, wilcoxon

from synboost_monai.evaluation.statistics import cluster_bootstrap
from synboost_monai.structures import STRUCTURES

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from paper_tables import (  # noqa: E402
    HEADLINES,
    MODELS,
    PUBLISHED_DICE,
    STRATEGIES,
    Run,
    best_table,
    comparison_by_structure_table,
    comparison_table,
    dice_table,
    main,
    means_table,
    own_runs,
    own_table,
    published_dice,
    published_results,
    published_runs,
    read_published,
    same_prompt_table,
    structure_table,
)


def made_rows() -> pd.DataFrame:
    """Make 46 runs x 600 cases in the file's own words; every run has its published mean Dice, and patients differ."""
    generator = np.random.default_rng(0)
    cases = [
        f"mask_{s.class_index}/patient{p:04d}_{v}_{t}_gt"
        for s in STRUCTURES
        for p in range(1, 51)
        for v in ("2CH", "4CH")
        for t in ("ED", "ES")
    ]
    of_patient = np.tile(np.repeat(generator.normal(0, 2, 50), 4), 3)
    parts = []
    for run in published_runs():
        dice = of_patient + generator.normal(0, 1, 600)
        dice = dice - dice.mean() + published_dice(run)
        labels = {"strategy": STRATEGIES[run.strategy], "model": MODELS[run.model], "prompt": run.prompt}
        parts.append(pd.DataFrame({**labels, "case": cases, "dice": dice, "iou": dice - 10}))
    return pd.concat(parts, ignore_index=True).assign(hausdorff_distance=lambda f: 10000 - 90 * f["dice"])


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return made_rows()


@pytest.fixture(scope="module")
def path(rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("published") / "per_image_metrics.csv.gz"
    rows.to_csv(target, index=False)
    return target


@pytest.fixture(scope="module")
def frame(path: Path) -> pd.DataFrame:
    return read_published(path)


def test_there_are_46_published_runs_with_the_means_of_the_paper() -> None:
    runs = published_runs()
    assert len(runs) == len(set(runs)) == 46
    assert not [r for r in runs if r.strategy == "synthetic" and r.prompt == "P7"]
    # the four numbers that the paper's text speaks of
    assert published_dice(Run("real", "cris", "P2")) == 91.03
    assert published_dice(Run("synthetic", "cris", "P5")) == 85.84
    assert published_dice(Run("synthetic_then_real", "cris", "P2")) == 91.39
    assert published_dice(Run("synthetic_then_real", "clipseg", "P3")) == 89.80
    assert published_dice(Run("synthetic", "cris", "P7")) is None
    assert published_dice(Run("real_and_synthetic", "cris", "P2")) is None
    best = {s: max(r for (t, _), means in PUBLISHED_DICE.items() if t == s for r in means) for s in STRATEGIES}
    assert best == {run.strategy: published_dice(run) for pair in HEADLINES for run in pair}


def test_without_the_file_the_printed_table_is_shown() -> None:
    text = published_results()
    assert "45.69  84.24  84.87  85.27  84.38  83.18  83.32      –" in text
    assert "as printed; give per_image_metrics.csv.gz for the rest" in text
    table = dice_table(None).frame
    assert int(table[[f"P{i}" for i in range(8)]].notna().sum().sum()) == 46


def test_rows_are_read_in_our_words(frame: pd.DataFrame) -> None:
    assert set(frame["strategy"]) == set(STRATEGIES) and set(frame["model"]) == set(MODELS)
    first = frame.iloc[0]
    expected = ("left_ventricular_cavity", "patient0001", "apical_two_chamber", "end_diastole")
    assert tuple(first[["structure", "patient", "view", "phase"]]) == expected
    assert frame["patient"].nunique() == 50 and (frame.groupby(["strategy", "model", "prompt"]).size() == 600).all()


def test_means_and_deviations_are_those_of_pandas(frame: pd.DataFrame) -> None:
    table = means_table(frame).frame
    assert len(table) == 46 and table["is_equal"].all()
    part = frame[(frame["strategy"] == "real") & (frame["model"] == "cris") & (frame["prompt"] == "P4")]
    row = table.query("strategy == 'real' and model == 'CRIS' and prompt == 'P4'").iloc[0]
    for metric in ("dice", "iou", "hausdorff_distance"):
        assert row[f"{metric}_mean"] == pytest.approx(part[metric].mean())
        assert row[f"{metric}_std"] == pytest.approx(part[metric].std(ddof=1))
    wide = dice_table(frame).frame
    assert wide.iloc[3]["P4"] == pytest.approx(row["dice_mean"])


def test_a_mean_that_differs_is_told(frame: pd.DataFrame) -> None:
    changed = frame.copy()
    changed.loc[(changed["strategy"] == "real") & (changed["prompt"] == "P4"), "dice"] += 0.01
    table = means_table(changed).frame
    assert table.loc[~table["is_equal"], ["model", "prompt"]].to_numpy().tolist() == [["CLIPSeg", "P4"], ["CRIS", "P4"]]


def test_comparisons_are_scipys_over_masks_and_over_patients(frame: pd.DataFrame) -> None:
    table = comparison_table(frame).frame
    assert table["comparison"].tolist() == [
        "real (CRIS P2) > synthetic (CRIS P5)",
        "synthetic_then_real (CRIS P2) > real (CRIS P2)",
    ]
    pair = []
    for run in HEADLINES[1]:
        part = frame[(frame["strategy"] == run.strategy) & (frame["model"] == "cris") & (frame["prompt"] == run.prompt)]
        pair.append(part.set_index("case").sort_index())
    difference = pair[0]["dice"] - pair[1]["dice"]
    row = table.iloc[1]
    assert (row["num_pairs"], row["num_patients"]) == (600, 50)
    assert row["difference"] == pytest.approx(difference.mean()) == pytest.approx(91.39 - 91.03)
    assert row["wilcoxon_p"] == pytest.approx(wilcoxon(difference, alternative="greater").pvalue, rel=1e-6)
    assert row["t_p"] == pytest.approx(ttest_rel(pair[0]["dice"], pair[1]["dice"], alternative="greater").pvalue)
    of_patient = difference.groupby(pair[0]["patient"]).mean()
    assert row["patient_wilcoxon_p"] == pytest.approx(wilcoxon(of_patient, alternative="greater").pvalue, rel=1e-6)
    low, high = cluster_bootstrap(difference.to_numpy(), pair[0]["patient"].to_numpy())
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=0.02) and low < row["difference"] < high
    smallest, other = sorted(table["patient_wilcoxon_p"])
    assert sorted(table["patient_wilcoxon_p_holm"]) == pytest.approx([2 * smallest, max(other, 2 * smallest)])


def test_families_of_holm_are_the_tables(frame: pd.DataFrame) -> None:
    structures, prompts = comparison_by_structure_table(frame), same_prompt_table(frame)
    assert structures.frame["structure"].tolist() == [s.name for s in STRUCTURES] * 2
    assert len(prompts.frame) == 16 and "over the 16 tests" in prompts.note and "over the 6 tests" in structures.note
    for table in (structures, prompts):
        adjusted = table.frame["wilcoxon_p_holm"]
        assert (adjusted >= table.frame["wilcoxon_p"]).all()
        smallest = table.frame["wilcoxon_p"].min()
        assert adjusted.min() == pytest.approx(min(len(table.frame) * smallest, 1))
    assert structures.frame["num_pairs"].eq(200).all()


def test_best_prompts_are_those_of_the_highest_mean_and_said_to_be_optimistic(frame: pd.DataFrame) -> None:
    table = best_table(frame)
    best = table.frame[table.frame["is_best"]]
    found = {(r.strategy, r.model, r.prompt) for r in best.itertuples()}
    assert found == {(r.strategy, "CRIS", r.prompt) for pair in HEADLINES for r in pair}
    assert len(table.frame) == 6 and "optimistic" in table.note
    assert ((table.frame["low"] < table.frame["dice"]) & (table.frame["dice"] < table.frame["high"])).all()


def test_structures_of_every_run(frame: pd.DataFrame) -> None:
    table = structure_table(frame).frame
    assert len(table) == 46
    means = table[[s.name for s in STRUCTURES]].mean(axis=1)
    assert means.to_numpy() == pytest.approx(means_table(frame).frame["dice_mean"].to_numpy())


def test_text_and_files_of_everything(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(path), "--output", str(tmp_path / "tables")])
    text = capsys.readouterr().out
    assert "46 of 46 means equal the published ones to two decimals" in text
    names = ["best", "comparisons", "comparisons_by_structure", "dice", "means", "same_prompt", "structures"]
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == sorted(
        f"published_{name}.{suffix}" for name in names for suffix in ("csv", "tex")
    )


# ---- files that are not what they should be


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("column", "expected the columns strategy, .*; iou missing, got strategy"),
        ("strategy", "unknown strategy 'reall'; did you mean real?"),
        ("model", "unknown model 'SAM'; known are CLIPSeg, CRIS"),
        ("prompt", "unknown prompt 'P8'"),
        ("case", "case must be mask_1..3/patientNNNN_VIEW_PHASE_gt, got 'mask_4/patient0001_2CH_ED_gt'"),
        ("fewer", r"expected 600 cases of synthetic \(CLIPSeg P0\), got 599"),
        ("run", r"expected 600 cases of real \(CRIS P3\), got 0"),
        ("extra", r"synthetic \(CRIS P7\) is none of the 46 published runs"),
        ("twice", r"real \(CRIS P3\) has mask_1/patient0001_2CH_ED_gt twice"),
        ("other_cases", "expected the same 600 cases in every run, got 601 different ones"),
        ("range", "dice must hold numbers from 0 to 100"),
        ("nan", "hausdorff_distance must hold numbers from 0 to inf"),
        ("text", "iou must hold numbers from 0 to 100"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(rows: pd.DataFrame, tmp_path: Path, fault: str, message: str) -> None:
    frame = rows.copy()
    is_run = (frame["strategy"] == "real") & (frame["model"] == "CRIS") & (frame["prompt"] == "P3")
    first = frame.index[is_run][0]
    if fault == "column":
        frame = frame.drop(columns="iou")
    elif fault in ("strategy", "model", "prompt", "case"):
        wrong = {"strategy": "reall", "model": "SAM", "prompt": "P8", "case": "mask_4/patient0001_2CH_ED_gt"}
        frame.loc[first, fault] = wrong[fault]
    elif fault == "fewer":
        frame = frame.drop(index=0)
    elif fault == "run":
        frame = frame[~is_run]
    elif fault == "extra":
        frame = pd.concat([frame, frame[is_run].assign(strategy="synthetic", prompt="P7")])
    elif fault == "twice":
        frame.loc[first + 1, "case"] = frame.loc[first, "case"]
    elif fault == "other_cases":
        frame.loc[first, "case"] = "mask_1/patient0051_2CH_ED_gt"
    elif fault == "text":
        frame["iou"] = frame["iou"].astype(object)
        frame.loc[first, "iou"] = "high"
    else:
        frame.loc[first, {"range": "dice", "nan": "hausdorff_distance"}[fault]] = {"range": 100.5, "nan": np.nan}[fault]
    frame.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(ValueError, match=message):
        read_published(tmp_path / "bad.csv")


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none.csv.gz")])
    assert capsys.readouterr().err.startswith(f"paper_tables.py: {tmp_path}/none.csv.gz: no such file; give the path")
    with pytest.raises(FileNotFoundError, match="no such file; give the path of per_image_metrics.csv.gz"):
        read_published(tmp_path / "none.csv.gz")
    (tmp_path / "text.csv.gz").write_bytes(b"not compressed")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(bytes(range(256)) * 1000)[:500])
    (tmp_path / "empty.csv").write_text("")
    for name in ("text.csv.gz", "cut.csv.gz", "empty.csv"):
        with pytest.raises(ValueError, match="not a readable CSV file") as caught:
            read_published(tmp_path / name)
        assert "\n" not in str(caught.value)


# ---- own runs


def write_evaluation(folder: Path, dice: float, *, num_patients: int = 3, paper_grid: bool = False) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for i in range(num_patients):
        for structure in STRUCTURES:
            row = {"case": f"c{i}", "patient": f"p{i}", "view": "apical_four_chamber", "phase": "end_systole"}
            row |= {"structure": structure.name, "dice": dice + 0.01 * (i - (num_patients - 1) / 2), "iou": dice - 0.1}
            if paper_grid:
                row |= {"dice_512": row["dice"] - 0.02, "iou_512": 0.5, "hausdorff_512": 12.5}
            rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)
    facts = {"dataset_dir": "real", "section": "testing", "preset": "small", "image_size": 160}
    (folder / "summary.json").write_text(json.dumps(facts))
    return folder / "metrics.csv"


@pytest.fixture
def study_dir(tmp_path: Path) -> Path:
    """Write a study's run with two evaluations."""
    run = tmp_path / "real" / "run"  # "real" above the run is no strategy
    write_evaluation(run / "segmenters/cris/synthetic_then_real/P2/patients20/seed0/evaluation", 0.8, paper_grid=True)
    write_evaluation(run / "segmenters/clipseg/real_and_synthetic/P7/frozen/seed1/evaluation", 0.7)
    (run / "study.yaml").write_text("name: x\ndata: {dataset: /somewhere/CAMUS}\n")
    return run


def test_runs_of_a_study_stand_beside_their_published_ones(study_dir: Path, frame: pd.DataFrame) -> None:
    runs = own_runs([str(study_dir)])
    assert [(str(r.run), r.name) for r in runs] == [
        ("real_and_synthetic (CLIPSeg P7)", "frozen/seed1"),
        ("synthetic_then_real (CRIS P2)", "patients20/seed0"),
    ]
    joint, then = own_table(runs, frame).frame.astype(object).to_dict("records")
    assert joint["published_dice"] != joint["published_dice"]  # never published
    assert (joint["grid"], joint["views"], joint["data"], joint["split"]) == ("native", "4CH", "CAMUS", "testing")
    assert joint["dice"] == pytest.approx(70) and joint["low"] < 70 < joint["high"]
    assert then["dice"] == pytest.approx(78) and then["grid"] == "512 x 512" and then["iou"] == pytest.approx(50)
    assert then["difference"] == pytest.approx(78 - 91.39) and then["network"] == "small, 160 px"
    assert then["published_iou"] == pytest.approx(81.39, abs=1e-6)
    published_hausdorff = (10000 - 90 * 91.39) / 100
    assert (then["hausdorff"], then["published_hausdorff"]) == pytest.approx((12.5, published_hausdorff))


def test_a_file_elsewhere_is_named_with_what_it_is(tmp_path: Path) -> None:
    path = write_evaluation(tmp_path / "out", 0.9, num_patients=1)
    (tmp_path / "out" / "summary.json").unlink()
    text = published_results(runs=[f"cris/real/P1={path}"])
    assert "Your runs beside the published ones" in text
    row = own_table(own_runs([f"cris/real/P1={path}"])).frame.iloc[0]
    assert row["difference"] == pytest.approx(-1.0) and row["low"] is None and row["published_iou"] is None
    assert row["data"] is None and row["num_masks"] == 3


def test_unknown_runs_are_named(tmp_path: Path) -> None:
    path = write_evaluation(tmp_path / "out", 0.9)
    with pytest.raises(ValueError, match="give it as MODEL/STRATEGY/PROMPT=.*metrics.csv, such as cris/real/P2="):
        own_runs([str(path)])
    with pytest.raises(ValueError, match="unknown strategy 'reel'; did you mean real?"):
        own_runs([f"cris/reel/P2={path}"])
    with pytest.raises(ValueError, match="unknown model 'unet'; there are clipseg, cris"):
        own_runs([f"unet/real/P2={path}"])
    with pytest.raises(FileNotFoundError, match=r"no segmenters/\*\*/evaluation/metrics.csv in this folder"):
        own_runs([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="no such file; give the metrics.csv of an evaluation"):
        own_runs([f"cris/real/P2={tmp_path / 'none.csv'}"])


def test_every_number_of_the_table_has_its_source(study_dir: Path) -> None:
    note = own_table(own_runs([str(study_dir)])).note
    for words in ("600 masks of the 50 official testing patients", "epoch was chosen on these masks", "Command: "):
        assert words in note
