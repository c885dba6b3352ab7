"""Test statistics of runs against scipy, numbers worked out by hand, and each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from synboost_monai.evaluation.statistics import (
    P_VALUES,
    add_holm,
    bootstrap_means,
    cluster_bootstrap,
    compare_pairs,
    draw_by_cluster,
    effect_sizes,
    holm,
    interval,
    lowest_tenth,
    paired_tests,
    patient_means,
    patients_to_reach,
    updates_to_reach,
)

NAMES = ("left_ventricular_cavity", "myocardium", "left_atrium")


def make_pair(seed: int = 0, num: int = 80) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    b = generator.uniform(0.5, 0.9, num)
    return b + generator.normal(0.02, 0.05, num), b


def make_run(seed: int, num_patients: int = 8, bonus: float = 0.0) -> pd.DataFrame:
    """Make a run with two images of each patient; patients differ more than their images do."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for patient in range(num_patients):
        level = np.random.default_rng(1000 + patient).uniform(0.6, 0.8) + bonus * generator.uniform(0, 2)
        for phase in ("ED", "ES"):
            for name in NAMES:
                dice = level + generator.uniform(0, 0.05)
                facts = {"case": f"p{patient}_{phase}", "patient": f"p{patient}", "structure": name}
                rows.append(facts | {"dice": dice, "hd95_mm": 10 * (1 - dice)})
    return pd.DataFrame(rows)


# ---- tests of pairs


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
@pytest.mark.parametrize("num", [12, 80])
def test_paired_tests_are_scipys(num: int, alternative: str) -> None:
    a, b = make_pair(num=num)
    found = paired_tests(a, b, alternative=alternative)
    assert found["wilcoxon_p"] == pytest.approx(stats.wilcoxon(a, b, alternative=alternative).pvalue, rel=1e-9)
    assert found["t_p"] == pytest.approx(stats.ttest_rel(a, b, alternative=alternative).pvalue, rel=1e-6)
    assert found["num_pairs"] == num
    assert found["mean_difference"] == pytest.approx((a - b).mean())
    assert found["std_difference"] == pytest.approx((a - b).std(ddof=1))


@pytest.mark.parametrize(
    ("difference", "p"),
    [
        ([1, 2, 3, 4, 5], 1 / 32),  # of the 32 patterns of signs this one has the largest sum of ranks
        ([1, -2, 3], 3 / 8),  # sums of at least 4 of 0, 1, 2, 3, 3, 4, 5, 6
        ([0, 0, 1, -2, 3], 3 / 8),  # zeros are left out
    ],
)
@pytest.mark.filterwarnings("error")
def test_few_pairs_have_an_exact_p_value(difference: list[float], p: float) -> None:
    assert paired_tests(np.array(difference) + 0.5, np.full(len(difference), 0.5))["wilcoxon_p"] == pytest.approx(p)


@pytest.mark.filterwarnings("error")
def test_runs_without_a_difference_say_so() -> None:
    same = paired_tests([0.5, 0.6], [0.5, 0.6])
    assert (same["wilcoxon_p"], same["t_p"], same["mean_difference"]) == (1.0, 1.0, 0.0)
    constant = paired_tests([0.6, 0.7], [0.5, 0.6])
    assert (constant["wilcoxon_p"], constant["t_p"]) == (0.25, None)
    single = paired_tests([0.6], [0.5])
    assert (single["wilcoxon_p"], single["t_p"], single["std_difference"]) == (0.5, None, 0.0)


def test_effect_sizes_worked_out_by_hand() -> None:
    found = effect_sizes([1, 2, 3, 0], [0, 4, 0, 0])  # 1, -2, 3, 0
    assert found["cohens_dz"] == pytest.approx(0.5 / np.sqrt((0.5**2 + 2.5**2 + 2.5**2 + 0.5**2) / 3))
    assert found["rank_biserial"] == pytest.approx((1 + 3 - 2) / 6)
    # means of two: -2, -1, -.5, 0, .5, .5, 1, 1.5, 2, 3
    assert found["hodges_lehmann"] == pytest.approx(0.5)


def test_effect_sizes_of_many_pairs() -> None:
    a, b = make_pair(3, 41)
    found, d = effect_sizes(a, b), a - b
    means = [(d[i] + d[j]) / 2 for i in range(41) for j in range(i, 41)]
    assert found["hodges_lehmann"] == pytest.approx(np.median(means), abs=1e-9)
    statistic = stats.wilcoxon(a, b, alternative="greater").statistic  # sum of the ranks where a > b
    assert found["rank_biserial"] == pytest.approx(2 * statistic / (41 * 42 / 2) - 1)
    mirrored = effect_sizes(b, a)
    assert {key: -value for key, value in mirrored.items()} == pytest.approx(found)


def test_effect_sizes_without_a_difference_are_undefined() -> None:
    assert effect_sizes([1, 2], [1, 2]) == {"cohens_dz": None, "rank_biserial": None, "hodges_lehmann": 0.0}
    assert effect_sizes([2, 3], [1, 2]) == {"cohens_dz": None, "rank_biserial": 1.0, "hodges_lehmann": 1.0}


def test_binary_fractions_do_not_break_ties() -> None:
    assert 0.3 - 0.2 != 0.2 - 0.1
    assert effect_sizes([0.3, 0.1], [0.2, 0.2])["rank_biserial"] == 0.0
    assert paired_tests([0.3, 0.1], [0.2, 0.2], alternative="two-sided")["wilcoxon_p"] == 1.0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 2], [1], r"expected pairs, got values of shapes \(2,\) and \(1,\)"),
        ([], [], "expected pairs"),
        ([[1]], [[1]], "expected pairs"),
        ([1, float("nan")], [1, 2], "leave out the pairs that are undefined"),
    ],
)
def test_what_is_no_pair_is_refused(a: list, b: list, message: str) -> None:
    for function in (paired_tests, effect_sizes):
        with pytest.raises(ValueError, match=message):
            function(a, b)


def test_an_unknown_alternative_is_named() -> None:
    with pytest.raises(ValueError, match="must be one of greater, less, two-sided, got 'larger'"):
        paired_tests([1], [0], alternative="larger")


# ---- patients


def test_patient_means_leave_out_what_is_undefined() -> None:
    frame = pd.DataFrame({"patient": ["b", "a", "b", "c"], "dice": [0.2, 0.5, 0.6, None]})
    means = patient_means(frame, "dice")
    assert means.index.tolist() == ["a", "b"] and means.tolist() == pytest.approx([0.5, 0.4])
    with pytest.raises(ValueError, match="expected a column asd_mm, got patient, dice"):
        patient_means(frame, "asd_mm")
    with pytest.raises(ValueError, match="2 rows have no patient"):
        patient_means(pd.DataFrame({"patient": ["a", None, None], "dice": [1.0, 1.0, 1.0]}), "dice")


def test_interval_is_scipys_over_clusters() -> None:
    generator = np.random.default_rng(5)
    clusters = generator.integers(15, size=90)
    values = generator.exponential(size=90) + clusters / 10  # skewed; clusters of different sizes
    names = pd.factorize(clusters)[0]
    totals, counts = np.bincount(names, values), np.bincount(names)

    def mean(totals: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
        return totals.sum(axis=axis) / counts.sum(axis=axis)

    expected = stats.bootstrap(
        (totals, counts),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="BCa",
        random_state=np.random.default_rng(7),
    ).confidence_interval
    found = cluster_bootstrap(values, clusters, num_resamples=2000, seed=7)
    # scipy interpolates the quantiles of its draws in a way of its own
    assert found == pytest.approx(tuple(expected), abs=0.01 * (expected.high - expected.low))


def test_repeating_the_rows_of_patients_does_not_narrow_the_interval() -> None:
    a, b = make_pair(num=20)
    patients = [f"p{i}" for i in range(20)]
    once = cluster_bootstrap(a - b, patients, num_resamples=500)
    repeated = cluster_bootstrap(np.repeat(a - b, 12), np.repeat(patients, 12), num_resamples=500)
    assert repeated == pytest.approx(once)
    as_if_independent = cluster_bootstrap(np.repeat(a - b, 12), range(240), num_resamples=500)  # type: ignore[arg-type]
    assert np.diff(as_if_independent)[0] < 0.4 * np.diff(once)[0]  # about 1 / sqrt(12)


def test_interval_holds_the_mean_and_the_seed_decides() -> None:
    a, b = make_pair()
    patients = np.arange(80) // 4
    low, high = cluster_bootstrap(a - b, patients, num_resamples=300, seed=1)
    assert low < (a - b).mean() < high
    assert (low, high) == cluster_bootstrap(a - b, patients, num_resamples=300, seed=1)
    assert (low, high) != cluster_bootstrap(a - b, patients, num_resamples=300, seed=2)


@pytest.mark.filterwarnings("error")
def test_interval_of_equal_clusters_is_a_point() -> None:
    assert cluster_bootstrap([0.1] * 6, list("aabbcc"), num_resamples=50) == pytest.approx((0.1, 0.1))
    assert cluster_bootstrap([0.0] * 3, list("abc"), num_resamples=50) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("values", "clusters", "options", "message"),
    [
        ([1, 2], ["a", "a"], {}, "needs at least two clusters, got 1"),
        ([1, 2], ["a"], {}, "do not fit 1 clusters"),
        ([1, float("inf")], ["a", "b"], {}, "NaN or infinity"),
        ([1, 2], ["a", "b"], {"num_resamples": 0}, "num_resamples of at least 1, got 0"),
    ],
)
def test_wrong_clusters_are_named(values: list, clusters: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(values, clusters, **options)


# ---- families


def test_holm_worked_out_by_hand() -> None:
    # 4 x 0.005; 3 x 0.01; 2 x 0.03; 0.04 is raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.8, 0.7]).tolist() == [1.0, 1.0, 1.0]
    assert holm([]).tolist() == [] and holm([0.2]).tolist() == [0.2]


def test_holm_rejects_step_by_step() -> None:
    """By its definition it goes from the smallest on, until one is above level / (number left)."""
    p = np.random.default_rng(2).uniform(0, 0.1, 9)
    for level in (0.02, 0.05, 0.2):
        rejected = np.zeros(9, bool)
        for step, i in enumerate(np.argsort(p)):
            if p[i] > level / (9 - step):
                break
            rejected[i] = True
        assert (holm(p) <= level).tolist() == rejected.tolist()


@pytest.mark.parametrize("p", [[1.1], [-0.1], [float("nan")], [[0.1]]])
def test_holm_refuses_what_is_no_p_value(p: list) -> None:
    with pytest.raises(ValueError, match=r"must be numbers in \[0, 1\]"):
        holm(p)


def test_holm_over_several_comparisons() -> None:
    first, second = (
        compare_pairs(make_run(1, bonus=0.02), make_run(s), metrics=["dice"], num_resamples=20) for s in (2, 3)
    )
    both = add_holm([*first, *second])
    assert {record["num_family"] for record in first} == {4} and {record["num_family"] for record in both} == {8}
    for key in P_VALUES:
        assert [r[f"{key}_holm"] for r in both] == pytest.approx(holm([r[key] for r in both]).tolist())


# ---- convergence


@pytest.mark.parametrize(
    ("level", "expected"),
    [(79, "< 5"), (80, "5"), (85, "10"), (90, "20"), (90.5, "40"), (91, "80"), (91.5, "> 80")],
)
def test_a_learning_curve_says_how_many_patients_a_dice_is_worth(level, expected) -> None:
    assert patients_to_reach([5, 20, 80], [80, 90, 91], level) == expected


def test_a_learning_curve_that_falls_counts_with_its_best_so_far() -> None:
    assert patients_to_reach([5, 20, 80, 320], [80, 90, 85, 92], 90) == "20"
    assert patients_to_reach([5, 20, 80, 320], [80, 90, 85, 92], 91) == "160"


@pytest.mark.parametrize(("counts", "dice"), [([], []), ([20, 5], [1, 2]), ([5, 20], [1])])
def test_a_learning_curve_that_is_none_is_refused(counts, dice) -> None:
    with pytest.raises(ValueError, match="increasing numbers of patients"):
        patients_to_reach(counts, dice, 1.0)


def test_the_lowest_tenth_is_at_least_one_value() -> None:
    assert lowest_tenth([3.0, 1.0, 2.0]) == 1.0
    assert lowest_tenth(list(range(20, 0, -1))) == 1.5
    with pytest.raises(ValueError, match="no values"):
        lowest_tenth([])


def test_updates_to_reach_takes_the_first_validation_at_or_above() -> None:
    history = pd.DataFrame({"iteration": [10, 15, 20, 30, 40], "val_mean_dice": [0.5, None, 0.8, 0.7, 0.9]})
    assert updates_to_reach(history, 0.8) == 20
    assert updates_to_reach(history, 0.81) == 40  # nothing between 30 and 40 is guessed
    assert updates_to_reach(history, 0.95) is None
    assert updates_to_reach(history.iloc[::-1], 0.7) == 20
    assert isinstance(updates_to_reach(history, 0.0), int)
    with pytest.raises(ValueError, match="lacks the columns val_mean_dice"):
        updates_to_reach(history[["iteration"]], 0.8)
    with pytest.raises(ValueError, match=r"dice must be in \[0, 1\], got 80"):
        updates_to_reach(history, 80)


# ---- two runs


def test_compare_pairs_gives_what_its_parts_give() -> None:
    run_a, run_b = make_run(1, bonus=0.02), make_run(2)
    records = compare_pairs(
        run_a.sample(frac=1, random_state=0), run_b, metrics=["dice", "hd95_mm"], num_resamples=200, seed=4
    )
    assert [(r["metric"], r["structure"]) for r in records] == [
        (metric, name) for metric in ("dice", "hd95_mm") for name in (*NAMES, "overall")
    ]
    for record in records:
        part = slice(None) if record["structure"] == "overall" else run_a["structure"] == record["structure"]
        a, b = (run.loc[part] for run in (run_a, run_b))
        is_distance = record["metric"] == "hd95_mm"
        values = [x[record["metric"]].to_numpy() for x in (a, b)]
        alternative = "less" if is_distance else "greater"
        rows = paired_tests(*values, alternative=alternative)
        means = [patient_means(x, record["metric"]) for x in (a, b)]
        patients = paired_tests(*means, alternative=alternative)
        low, high = cluster_bootstrap(values[0] - values[1], a["patient"].tolist(), num_resamples=200, seed=4)
        expected = {key: rows[key] for key in ("wilcoxon_p", "t_p")} | effect_sizes(*values)
        expected |= {f"patient_{key}": patients[key] for key in ("wilcoxon_p", "t_p")}
        expected |= {"difference": record["mean_a"] - record["mean_b"], "std_a": values[0].std(ddof=1)}
        expected |= {"ci_low": low, "ci_high": high, "num_pairs": len(a), "num_patients": 8, "num_left_out": 0}
        assert {key: record[key] for key in expected} == pytest.approx(expected)
        assert record["tested"] == ("a < b" if is_distance else "a > b")
        assert record["better"] == ("smaller" if is_distance else "larger")
    overall = [r for r in records if r["structure"] == "overall"]
    assert overall[0]["wilcoxon_p"] == pytest.approx(overall[1]["wilcoxon_p"])  # 10 (1 - dice) ranks the other way


def test_patient_level_p_values_see_fewer_cases() -> None:
    record = compare_pairs(make_run(1, bonus=0.02), make_run(2), metrics=["dice"], num_resamples=50)[-1]
    assert record["wilcoxon_p"] < 1e-4 < record["patient_wilcoxon_p"]
    assert record["patient_wilcoxon_p"] >= 2**-8  # the smallest that 8 patients can give


def test_undefined_rows_are_left_out_and_counted() -> None:
    run_a, run_b = make_run(1), make_run(2)
    run_a.loc[[0, 3], "hd95_mm"] = None  # the cavity of both images of the first patient
    run_b.loc[[0, 6], "hd95_mm"] = None
    run_b.loc[run_b["structure"] == "left_atrium", "hd95_mm"] = None
    cavity, _, atrium, overall = compare_pairs(run_a, run_b, metrics=["hd95_mm"], num_resamples=50)
    assert (cavity["num_pairs"], cavity["num_left_out"], cavity["num_patients"]) == (13, 3, 7)
    assert (atrium["num_pairs"], atrium["num_left_out"], atrium["mean_a"], atrium["wilcoxon_p"]) == (0, 16, None, None)
    assert atrium["wilcoxon_p_holm"] is None and atrium["cohens_dz"] is None and atrium["tested"] == "a < b"
    assert (overall["num_pairs"], overall["num_family"]) == (29, 3)
    assert atrium.keys() == cavity.keys()


def test_runs_without_patients_have_no_patient_level() -> None:
    run_a, run_b = (make_run(s).assign(patient=None) for s in (1, 2))
    record = compare_pairs(run_a, run_b, metrics=["dice"])[-1]
    needs_patients = ("num_patients", "patient_wilcoxon_p", "patient_t_p", "patient_t_p_holm", "ci_low", "ci_high")
    assert [record[key] for key in needs_patients] == [None] * 6 and record["wilcoxon_p"] is not None
    one = compare_pairs(run_a.drop(columns="patient"), make_run(2), metrics=["dice"], num_resamples=20)[-1]
    assert one["num_patients"] == 8 and one["ci_low"] is not None
    single = [run[run["patient"] == "p0"] for run in (make_run(1), make_run(2))]
    record = compare_pairs(*single, metrics=["dice"])[-1]
    assert (record["num_patients"], record["ci_low"], record["patient_t_p"]) == (1, None, None)


@pytest.mark.parametrize(("alternative", "signs"), [("less", ["a < b", "a > b"]), ("two-sided", ["a != b", "a != b"])])
def test_alternative_flips_for_distances(alternative: str, signs: list[str]) -> None:
    options: dict[str, Any] = {"metrics": ["dice", "hd95_mm"], "num_resamples": 20}
    records = compare_pairs(make_run(1), make_run(2), alternative=alternative, **options)
    assert [r["tested"] for r in records if r["structure"] == "overall"] == signs


def test_runs_of_different_cases_are_named() -> None:
    run_a, run_b = make_run(1), make_run(2)
    with pytest.raises(ValueError, match="the second run lacks p0_ED left_ventricular_cavity, p0_ED myocardium; runs"):
        compare_pairs(run_a, run_b.iloc[2:], metrics=["dice"])
    with pytest.raises(ValueError, match="the first run lacks .* and 3 more; the second run lacks p7_ES left_atrium;"):
        compare_pairs(run_a.iloc[6:], run_b.iloc[:-1], metrics=["dice"])
    with pytest.raises(ValueError, match="the first run has more than one row of p0_ED left_ventricular_cavity"):
        compare_pairs(pd.concat([run_a, run_a.iloc[:1]]), run_b, metrics=["dice"])
    with pytest.raises(ValueError, match="the second run has no column dice"):
        compare_pairs(run_a, run_b.drop(columns="dice"), metrics=["dice"])
    with pytest.raises(ValueError, match="the second run has no value of dice"):
        compare_pairs(run_a, run_b.assign(dice=None), metrics=["dice"])


def test_patients_that_do_not_agree_are_named() -> None:
    run_a, run_b = make_run(1), make_run(2)
    run_b.loc[0, "patient"] = "p9"
    with pytest.raises(ValueError, match="name different patients for p0_ED left_ventricular_cavity; are they"):
        compare_pairs(run_a, run_b, metrics=["dice"])
    for run in (run_a, run_b):
        run.loc[1, "patient"] = None
    run_b.loc[0, "patient"] = "p0"
    with pytest.raises(ValueError, match="no run tells the patient of p0_ED myocardium; name all patients or none"):
        compare_pairs(run_a, run_b, metrics=["dice"])


def test_bootstrap_draws_patients_not_images() -> None:
    """Two images of a patient that are equal must not halve the variance."""
    values = np.random.default_rng(0).normal(0, 1, 40)
    twice = np.repeat(values, 2)
    single = bootstrap_means(values.tolist(), list(range(40)), 4000, seed=1)
    clustered = bootstrap_means(twice.tolist(), [i // 2 for i in range(80)], 4000, seed=1)
    np.testing.assert_allclose(single, clustered)
    assert clustered.std() == pytest.approx(values.std() / np.sqrt(40), rel=0.06)
    naive = bootstrap_means(twice.tolist(), list(range(80)), 4000, seed=1)
    assert naive.std() < 0.8 * clustered.std()


def test_bootstrap_weighs_images_not_patients() -> None:
    draws = bootstrap_means([0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"], 4000, seed=0)
    assert set(np.round(np.unique(draws), 3)) == {0.0, 0.75, 1.0}
    low, high = interval(np.linspace(0, 1, 1001))
    assert (low, high) == pytest.approx((0.025, 0.975))
    with pytest.raises(ValueError, match="num_bootstrap is 0"):
        bootstrap_means([1.0], ["a"], 0, seed=0)


def test_patients_are_drawn_whole() -> None:
    patients = [f"p{i // 2}" for i in range(20)]
    chosen = draw_by_cluster(patients, 8, seed=3)
    assert len(chosen) == 8 and chosen == sorted(chosen) and len({patients[i] for i in chosen}) == 4
    assert chosen == draw_by_cluster(patients, 8, seed=3) != draw_by_cluster(patients, 8, seed=4)
    assert draw_by_cluster(patients, 99, seed=0) == list(range(20))
