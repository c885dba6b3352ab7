"""Test the report of fabricated runs: a small one as in quickstart, and a grid with every axis."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from synboost_monai.evaluation.statistics import compare_pairs, patients_to_reach
from synboost_monai.pages.blocks import ReportTable, best_rows, pretty
from synboost_monai.pages.pictures import colour_label_map, overlay
from synboost_monai.pages.tables import Table
from synboost_monai.structures import LEFT_ATRIUM, MYOCARDIUM
from synboost_monai.study.grid import Segmenter
from synboost_monai.study.report import _write_cases, curves, differences, results_frame, write_report
from synboost_monai.study.report.evaluations import Evaluation, Run, Setting, mean_rows, repetitions

SECTIONS = {"summary", "study", "results", "structures", "differences", "clinical", "real", "ranked", "failures"}
"""Anchors of the sections that every study with label maps has."""


class _Page(HTMLParser):
    """Collect the contents of a page, and check that its tags are balanced."""

    VOID = {"meta", "img", "br", "hr", "link", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.sections: set[str] = set()
        self.headings: list[dict] = []
        self.metas: list[dict] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        self.ids.add(values.get("id", ""))
        for kind, found in (("img", self.images), ("th", self.headings), ("meta", self.metas)):
            if tag == kind:
                found.append(values)
        if tag == "section":
            self.sections.add(values["id"])
        for name in ("src", "href", "srcset", "action", "data"):
            if name in values:
                self.links.append(values[name])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def small_page(small_run_dir: Path) -> str:
    """Return the page of the small run."""
    return write_report(small_run_dir).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def grid_page(grid_run_dir: Path) -> str:
    """Return the page of the grid."""
    return write_report(grid_run_dir).read_text(encoding="utf-8")


def _table(run_dir: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(run_dir / "tables" / f"{name}.csv", dtype={"patients": str, "worth": str})


# ---- the page


def test_report_holds_the_numbers_of_the_evaluations(small_page, small_run_dir):
    page, results = small_page, pd.read_csv(small_run_dir / "results.csv")
    assert len(results) == 2 * 3 * 4  # models, strategies, structures and overall
    assert {"frozen", "patients", "fold", "asd_mm_mean"} <= set(results)
    exact = results_frame(Run.read(small_run_dir).evaluations)
    assert results["dice_mean"].tolist() == pytest.approx(exact["dice_mean"].tolist(), abs=1e-6)
    for _, row in exact.iterrows():
        assert f"{100 * row['dice_mean']:.2f} ± {100 * row['dice_std']:.2f}" in page
    overall = results[results.structure == "overall"].set_index(["model", "strategy"])["dice_mean"]
    difference = 100 * (overall["cris", "synthetic_then_real"] - overall["cris", "real"])
    assert f"{difference:+.2f}".replace("-", "−") in page
    assert "testing section of the phantom data set, which stands for real data: 2 images of 1 patient" in page
    record = json.loads((small_run_dir / "results.json").read_text())
    assert {r["segmenter"]["strategy"] for r in record["results"]} == {"real", "synthetic", "synthetic_then_real"}
    assert record["settings"]["diffusion"]["train"]["max_epochs"] == 3
    assert [stage["command"] for stage in record["stages"]] == ["synboost prepare phantom real"]


def test_report_has_sections_for_what_the_study_has(small_page, grid_page):
    assert _Page(small_page).sections == SECTIONS | {"synthetic", "times", "again"}
    assert _Page(grid_page).sections == SECTIONS | {"convergence", "scarcity", "prompts", "times", "again"}


def test_report_is_one_file_with_described_pictures(small_page):
    page = _Page(small_page)
    assert page.open == []
    # boxes of Dice and HD95, differences; 2 synthetic examples of label map, image, 2 models; 2 test images of image, expert, 6
    # segmenters; best, median and worst of 6; 3 with the lowest Dice and 3 with the largest HD95, each beside the expert
    assert len(page.images) == 3 + 2 * 4 + 2 * 8 + 6 * 3 * 2 + 2 * 3 * 2
    assert all(image["alt"] and int(image["width"]) > 0 for image in page.images)


def test_no_request_leaves_the_page(small_page, grid_page):
    for text in (small_page, grid_page):
        page = _Page(text)
        active = {"script", "link", "iframe", "object", "embed", "form", "base", "video"}
        assert page.open == [] and not page.tags & active
        policy = next(m["content"] for m in page.metas if m.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
        anchors = {link[1:] for link in page.links if link.startswith("#")}
        assert anchors == page.sections and anchors <= page.ids
        assert all(re.match(r"#|data:image/(png|jpeg);base64,", link) for link in page.links)
        assert "://" not in re.sub(r'src="data:[^"]*"', "", text) and "url(" not in text and "@import" not in text


def test_headings_say_what_they_head(grid_page):
    assert all(heading.get("scope") in ("col", "row") for heading in _Page(grid_page).headings)


def test_report_names_times_problems_prompts_and_settings_and_escapes_them(small_page):
    page = small_page
    assert "patient0007: image is cut off &lt;here&gt;" in page
    assert "A study for tests &lt;with&gt; &amp; signs." in page
    assert re.search(r'read the data set</th><td class="number">1</td><td class="number">7 s</td>', page)
    assert "# prepare the data: 7 s, 2 attempts\nsynboost prepare phantom real" in page
    assert "Myocardium in four-chamber view of the heart." in page
    assert "max_epochs: 3" in page
    assert "they say nothing about hearts" in page


def test_an_unfinished_run_on_real_data_says_what_is_missing_and_names_no_phantom(run_dir, tmp_path):
    study = run_dir / "study.yaml"
    study.write_text(study.read_text().replace("dataset: null", f"dataset: {run_dir / 'phantom'}"))
    summaries = sorted(run_dir.glob("segmenters/**/summary.json"))
    summaries[0].unlink()
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "6 segmenters, 5 of them evaluated so far" in page
    assert "say nothing about hearts" not in page and "testing section of phantom: 2 images" in page
    for summary in summaries[1:]:
        summary.unlink()
    with pytest.raises(ValueError, match="holds no evaluation yet"):
        write_report(run_dir)
    with pytest.raises(FileNotFoundError, match="has no study.yaml"):
        write_report(tmp_path / "elsewhere")


def test_report_does_without_pictures_data_and_distances(run_dir):
    for path in [*run_dir.glob("segmenters/**/label_maps/*"), run_dir / "real" / "datalist.json"]:
        path.unlink()
    for folder in run_dir.glob("segmenters/**/label_maps"):
        folder.rmdir()
    for path in run_dir.glob("segmenters/**/metrics.csv"):
        pd.read_csv(path).drop(columns=["hd_mm", "hd95_mm", "asd_mm"]).to_csv(path, index=False)
    page = _Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert page.sections == SECTIONS - {"clinical", "real", "ranked"} | {"synthetic", "times", "again"}


# ---- the grid's numbers


def test_page_of_a_grid_stays_small_and_says_what_is_shown(grid_page, grid_run_dir):
    assert len(grid_page) < 4_000_000
    for words in (
        "CRIS, trained on “real”, “synthetic”, “synthetic, then real” and “real and synthetic”; prompts P1 and P2;",
        "4 and all 10 patients for training and validation; seeds 0 and 1: 64 segmenters, 40 of them evaluated so far.",
        "Dice on the real test images, all 10 patients, encoders trained, prompt P2",
        "and 59 more: results.json, timing/",  # of 64 trainings
    ):
        assert words in grid_page
    for path in sorted((grid_run_dir / "tables").glob("*.csv")):
        assert f"tables/{path.stem}.csv, .tex" in grid_page and path.with_suffix(".tex").is_file()


def test_tables_are_means_over_seeds(grid_page, grid_run_dir):
    results = pd.read_csv(grid_run_dir / "results.csv")
    part = results[(results.structure == "overall") & (results.strategy == "real") & (results.prompt == "P1")]
    part = part[(part.patients == "4") & ~part.frozen.astype(bool)]
    assert len(part) == 2
    scores = _table(grid_run_dir, "scores").set_index(["patients", "encoders", "prompt", "strategy"])
    row = scores.loc["4", "trained", "P1", "real"]
    assert row.dice_percent == pytest.approx(100 * part.dice_mean.mean(), rel=1e-5)
    assert row.dice_percent_std == pytest.approx(100 * part.dice_std.mean(), rel=1e-5)
    assert row.dice_percent_std_of_runs == pytest.approx(100 * part.dice_mean.std(ddof=1), rel=1e-4)
    assert (row.num_runs, row.num_masks, row.num_empty) == (2, 2 * 60, 0)
    assert scores.loc["all 10", "trained", "P2", "real"].num_empty == 1
    matrix = _table(grid_run_dir, "dice_by_prompt").set_index(["strategy", "patients", "encoders"])
    assert matrix.loc["real", "4", "trained"].P1 == row.dice_percent
    assert f"{row.dice_percent:.2f} ± {row.dice_percent_std:.2f}" in grid_page


def test_differences_are_of_what_seeds_give_on_average(grid_page, grid_run_dir):
    run = Run.read(grid_run_dir)
    group = run.groups[Setting("cris", "P1", False, 4)]
    first, second = (mean_rows(group[s]).assign(dice=lambda f: 100 * f["dice"]) for s in ("real", "synthetic"))
    expected = compare_pairs(first, second, metrics=["dice"])[-1]
    table = _table(grid_run_dir, "differences")
    assert len(table) == 5 * 5  # settings and pairs
    row = table.set_index(["patients", "encoders", "prompt", "first", "second"])
    row = row.loc["4", "trained", "P1", "real", "synthetic"]
    for key in ("difference", "ci_low", "ci_high", "wilcoxon_p", "t_p", "patient_wilcoxon_p", "cohens_dz"):
        assert row[key] == pytest.approx(expected[key], rel=1e-5)
    single = [a.frame["dice"].mean() - b.frame["dice"].mean() for a, b in zip(group["real"], group["synthetic"])]
    assert [row.run_low, row.run_high] == pytest.approx([100 * min(single), 100 * max(single)], rel=1e-4)
    assert row.patient_wilcoxon_p_holm == min(1.0, 25 * table.patient_wilcoxon_p.min())
    encoders = _table(grid_run_dir, "encoders")
    assert len(encoders) == 4 and (encoders.difference > 0).all()


def test_what_cannot_be_compared_is_told(grid_run_dir, tmp_path):
    run = Run.read(grid_run_dir)
    kept = [e for e in run.evaluations if e.setting == Setting("cris", "P2", False, "all")]
    kept = [e for e in kept if (e.segmenter.strategy, e.segmenter.seed) in (("real", 0), ("synthetic", 1))]
    found = differences.compare_strategies(replace(run, evaluations=kept))
    assert found.found == []
    assert found.problems == ["CRIS, P2: real against synthetic: no seed and fold is evaluated in both"]


def test_scarcity_curve_counts_patients_and_compares_with_real(grid_page, grid_run_dir):
    frame = _table(grid_run_dir, "scarcity")
    assert sorted(set(frame["num_patients"])) == [4, 10]  # the datalist's patients for training and validation
    table = _table(grid_run_dir, "differences")
    chosen = table[(table.encoders == "trained") & (table.prompt == "P2") & (table.patients == "4")]
    chosen = chosen.set_index(["first", "second"])
    few = frame[frame.num_patients == 4].set_index("strategy")
    assert few.loc["synthetic"].difference == -chosen.loc["real", "synthetic"].difference
    assert few.loc["synthetic"].low == -chosen.loc["real", "synthetic"].ci_high
    assert few.loc["synthetic, then real"].difference == chosen.loc["synthetic, then real", "real"].difference
    assert list(few.tested.fillna("")) == ["", "worse", "better", "better"]
    assert (frame.lowest_percent <= frame.dice_percent).all()
    curve = frame[frame.strategy == "real"].set_index("num_patients").dice_percent.sort_index()
    for row in frame[frame.strategy != "real"].itertuples():
        assert row.worth == patients_to_reach(list(curve.index), curve.tolist(), row.dice_percent)
    assert (frame.dice_low < frame.dice_percent).all() and (frame.dice_percent < frame.dice_high).all()


def test_updates_are_counted_with_and_without_pretraining(tmp_path, grid_run_dir):
    run = Run.read(grid_run_dir)
    real, pretrained, finetuned = (
        Evaluation(Segmenter("cris", strategy, "P1", 0), tmp_path)
        for strategy in ("real", "synthetic", "synthetic_then_real")
    )
    for e, dice in ((real, [0.3, 0.6, 0.8, 0.9]), (pretrained, [0.5, 0.6]), (finetuned, [0.85, 0.9, 0.95])):
        folder = tmp_path / e.segmenter.output_dir
        folder.mkdir(parents=True)
        rows = [f"{100 * (i + 1)},{i},{d}" for i, d in enumerate(dice)]
        (folder / "history.csv").write_text("\n".join(["iteration,epoch,val_mean_dice", *rows]) + "\n")
    run = replace(run, run_dir=tmp_path, evaluations=[real, pretrained, finetuned])
    for e in run.evaluations:  # cached: no files are needed
        e.__dict__["summary"] = {"section": "testing", "num_cases": 1, "num_patients": 1}
    table = curves.updates_table(run).table.frame
    assert list(table.level) == pytest.approx([89.1, 70, 80, 85, 90])  # first 99 % of the best of real
    row = table.iloc[0]
    assert (row.real_updates, row.finetuning_updates, row.pretraining_updates) == (400, 200, 200)
    assert (row.ratio, row.ratio_with_pretraining) == (2.0, 1.0)
    assert table.ratio[3] == 4.0 and table.num_reached_real[3] == 1


def test_clinical_sensitivity_and_failure_tables_are_of_the_shown_segmenters(grid_page, grid_run_dir):
    clinical = _table(grid_run_dir, "clinical")
    assert set(clinical.strategy) == {"real", "synthetic", "synthetic, then real", "real and synthetic"}
    assert {"ejection fraction (%)", "LV volume, ED (ml)"} <= set(clinical.measure)
    assert "two-chamber view, end-diastole: no left atrium" in grid_page
    words = _table(grid_run_dir, "prompt_sensitivity").set_index(["attribute", "change"])
    assert (words.loc["structure", "wrong"] == 0).all() and (words.loc["view", "wrong"] == 100).all()
    failures = _table(grid_run_dir, "failures").set_index("strategy").drop(columns="hd95_mm_max")
    counts = {"num_empty": 1, "num_lost": 1, "num_masks": 60, "num_review": 1, "num_images": 20}
    assert failures.loc["real"].to_dict() == {"model": "CRIS", **counts}
    listed = _table(grid_run_dir, "failures_list")
    assert set(listed[listed.failure == "empty mask"].case) == {"patient0001_2CH_ED"}
    assert "CRIS, real: left atrium is empty" in grid_page and "CRIS, real: no left atrium was found" in grid_page


# ---- its parts


def test_a_distance_that_one_seed_lacks_has_no_mean(tmp_path):
    evaluations = [Evaluation(Segmenter("cris", "real", "P1", seed), tmp_path) for seed in (0, 1)]
    for e, hd95 in zip(evaluations, (2.0, np.nan)):
        rows = {"case": ["a", "b"], "structure": "myocardium", "patient": "p", "view": None, "phase": None}
        rows |= {"dice": [0.5 + 0.2 * e.segmenter.seed, 0.0], "hd95_mm": [3.0, hd95]}
        empty = [False, bool(np.isnan(hd95))]
        e.__dict__["frame"] = pd.DataFrame(rows | {"is_empty_prediction": empty}).assign(iou=0.1, hd_mm=1.0, asd_mm=1.0)
    frame = mean_rows(evaluations).set_index("case")
    assert frame.dice.tolist() == pytest.approx([0.6, 0.0]) and frame.num_empty.tolist() == [0, 1]
    assert frame.hd95_mm["a"] == 3.0 and np.isnan(frame.hd95_mm["b"])
    evaluations[1].__dict__["frame"] = evaluations[1].frame.assign(case=["a", "c"])
    with pytest.raises(ValueError, match="not evaluated on the same images"):
        mean_rows(evaluations)


def test_repetitions_are_told_in_words(tmp_path):
    def words(*keys):
        return repetitions(
            [Evaluation(Segmenter("cris", "real", "P1", seed, fold=fold), tmp_path) for fold, seed in keys]
        )

    assert words((None, 3)) == "seed 3"
    assert words((None, 0), (None, 2)) == "mean over seeds 0 and 2"
    assert words(*[(fold, 0) for fold in range(5)]) == "mean over seed 0, folds 0 to 4"


def test_table_shows_joined_cells_and_keeps_numbers_apart(tmp_path):
    frame = pd.DataFrame(
        {"a": ["x", "x", "y"], "n": [1.0, -2.0, None], "low": [0.5, None, None], "high": [2, None, None], "p": 1e-9}
    )
    table = Table("t", "T", frame, {"n": "+.1f", "low": ".1f", "high": ".1f", "p": ".1e"})
    shown = ReportTable(table, {"n": "{n} [{low}, {high}]"}, hidden=["p"], best=frozenset({(0, "n")}), groups=["a"])
    assert shown.rows == [
        [("x", False), ("+1.0 [0.5, 2.0]", True)],
        [("x", False), ("−2.0", False)],
        [("y", False), ("–", False)],
    ]
    small = ReportTable(replace(table, formats={"n": ".1e"}), {"n": "{a}: {n}"})
    assert small.shown.frame["n"][1] == "x: −2.0e+00" and small.rows[1][0][0] == "x: −2.0·10⁰"
    assert shown.first_rows == {2} and [is_number for _, is_number in shown.head] == [False, True]
    assert pretty("8.83e-73") == "8.83·10⁻⁷³" and pretty("better: 1.0e+05") == "better: 1.0·10⁵" and pretty("–") == "–"


def test_best_is_largest_or_smallest_of_its_group():
    frame = pd.DataFrame({"g": ["a", "a", "b", "c", "c"], "dice": [1, 3, 2, 5, 5], "hd": [4.0, 2.0, 1.0, np.nan, 7.0]})
    assert best_rows(frame, {"dice": True, "hd": False}, ["g"]) == {(1, "dice"), (1, "hd"), (3, "dice"), (4, "dice")}


def test_overlay_has_square_pixels_and_the_structures_colours():
    label_map = np.zeros((40, 40), np.uint8)
    label_map[10:30, 10:30] = MYOCARDIUM.class_index
    picture = overlay(np.full((40, 40), 7.0), label_map, (0.5, 0.25), size=80)
    assert picture.shape == (80, 40, 3)
    assert tuple(picture[20, 20]) == MYOCARDIUM.colour  # top edge: row 10 of 40
    assert tuple(picture[40, 20]) != MYOCARDIUM.colour  # inside it is only tinted
    assert tuple(picture[5, 5]) == (0, 0, 0)
    flat = colour_label_map(np.full((4, 4), LEFT_ATRIUM.class_index), (1, 1), size=8)
    assert np.all(flat == LEFT_ATRIUM.colour)


def test_every_case_of_every_segmenter_is_in_one_file(small_page, small_run_dir, tmp_path):
    cases = pd.read_csv(small_run_dir / "cases.csv.gz")
    evaluated = sorted(small_run_dir.glob("segmenters/**/evaluation/metrics.csv"))
    assert len(cases) == sum(len(pd.read_csv(path)) for path in evaluated) > 0
    assert cases.groupby(["model", "strategy", "prompt", "seed"]).ngroups == len(evaluated)
    one = pd.read_csv(small_run_dir / "segmenters/cris/synthetic/P2/seed0/evaluation/metrics.csv")
    part = cases[(cases["model"] == "cris") & (cases["strategy"] == "synthetic")]
    assert part["dice"].tolist() == pytest.approx(one["dice"].tolist(), rel=1e-5)
    _write_cases(Run.read(small_run_dir).evaluations, tmp_path / "again.gz")
    assert (small_run_dir / "cases.csv.gz").read_bytes() == (tmp_path / "again.gz").read_bytes()
