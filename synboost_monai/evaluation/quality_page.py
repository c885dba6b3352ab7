"""Write quality.html: verdicts, pictures and plots of an evaluation of synthetic images, in one file that loads nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synboost_monai.evaluation.quality_images import TISSUES, Echo, JudgingSegmenter, RealReader, SyntheticReader
from synboost_monai.evaluation.quality_numbers import Comparison, Neighbours
from synboost_monai.evaluation.speckle import RAYLEIGH_SNR, SPECKLE_STATISTICS
from synboost_monai.files import atomic_write_text
from synboost_monai.pages.figures import new_figure, png_of
from synboost_monai.pages.page import filled
from synboost_monai.pages.pictures import overlay, picture_cell, picture_source
from synboost_monai.pages.words import STRATEGY_COLOURS, css_colour
from synboost_monai.structures import STRUCTURES

TEMPLATE = Path(__file__).with_name("quality.html.j2")
"""Jinja template of the page."""
COLOURS = {"synthetic": STRATEGY_COLOURS["synthetic"], "real": STRATEGY_COLOURS["real"], "reference": "#9fb4d6"}
"""Set of images -> its colour in the plots."""
DPI = 110
"""Resolution of the plots."""
NUM_PICTURES = 4
"""Number of rows of pictures of each kind."""
NEAR, FAR = 1.5, 3.0
"""A distance up to NEAR times its floor is called near, and one beyond FAR times its floor far."""
DICE_NEAR, DICE_FAR = -0.02, -0.05
"""Dice on synthetic minus Dice on real images: not below the first value is near, below the second value is far."""
WORDS = {"near": "like real", "off": "differs", "far": "differs much", "": "–"}
"""Verdict -> word in the table."""
STATISTIC_TITLES = {
    "snr": "SNR",
    "nakagami_m": "Nakagami m",
    "axial_width_px": "axial width (px)",
    "lateral_width_px": "lateral width (px)",
}
"""Speckle statistic -> description."""


def write_page(
    path: str | os.PathLike[str],
    quality: Mapping[str, Any],
    sets: Comparison,
    found: Mapping[str, Neighbours],
    readers: tuple[SyntheticReader, RealReader],
    segmenter: JudgingSegmenter,
) -> None:
    """Write quality.html.

    Args:
        path: the file, written whole or not at all.
        quality: content of quality.json.
        sets, found: the sets and neighbours from which the numbers were computed.
        readers, segmenter: used to show some images again.
    """
    data = quality["data"]
    page = filled(
        TEMPLATE,
        {"fixed": _fixed, "signed": _signed},
        title=Path(data["dataset_dir"]).resolve().name,
        quality=quality,
        verdicts=verdicts(quality),
        words=WORDS,
        speckle=_speckle_rows(quality["speckle"]),
        structures=[
            {"title": s.prompt_words, "colour": css_colour(s.colour), **quality["faithfulness"]["structures"][s.name]}
            for s in STRUCTURES
            if s.name in quality["faithfulness"]["structures"]
        ],
        random_rows=_random_rows(sets, readers),
        worst_rows=_worst_rows(sets, readers[0], segmenter),
        closest_rows=_closest_rows(sets, found, readers),
        plots={
            "dice": picture_source(_dice_plot(sets)),
            "spectra": picture_source(_spectra_plot(quality)),
            "speckle": picture_source(_speckle_plot(sets)),
            "nearest": picture_source(_nearest_plot(found)),
        },
        limits={"near": NEAR, "far": FAR, "dice_near": DICE_NEAR, "dice_far": DICE_FAR},
        rayleigh_snr=RAYLEIGH_SNR,
    )
    atomic_write_text(path, page)


# ---- the table of verdicts


def verdicts(quality: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of the first table: metric, synthetic, real, verdict, meaning; numbers as text."""
    return [dict(zip(("metric", "synthetic", "real", "verdict", "meaning"), row)) for row in _verdicts(quality)]


def _verdicts(quality: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the cells of the rows of `verdicts`."""
    scores, dark, varied = quality["faithfulness"], quality["darkness"], quality["diversity"]
    yield (
        "Mask faithfulness, Dice",
        f"{scores['mean_dice']:.3f} ± {scores['std_dice']:.3f}",
        f"{scores['real_mean_dice']:.3f} ± {scores['real_std_dice']:.3f}",
        _grade(scores["difference"], DICE_NEAR, DICE_FAR),
        f"difference {_signed(scores['difference'])} (95 % interval over patients {_signed(scores['difference_ci_low'])} to "
        f"{_signed(scores['difference_ci_high'])}): does a segmenter that learned from real images find what the image was made from? "
        f"Within the sector alone: {scores['mean_dice_in_sector']:.3f}, real {scores['real_mean_dice_in_sector']:.3f}",
    )
    for title, numbers, meaning in (
        ("FID, segmenter’s features", quality["fid"], "distance of the feature distributions to the reference"),
        ("FID, Inception’s features", quality["fid_inception"], "the same with the network that was given"),
    ):
        if numbers:
            value, floor = numbers["value"], numbers["floor"]
            yield title, f"{value:.3g}", f"{floor:.3g}", _grade_of(value, floor), f"{meaning}; {_times(numbers)}"
    mmd = quality["mmd"]
    yield (
        "MMD², segmenter’s features",
        _fixed(mmd["value"], 4),
        _fixed(mmd["floor"], 4),
        _grade_of(mmd["value"], max(mmd["floor"], mmd["chance_level"])),
        f"the same without the assumption of normal distributions; equal sets stay below {mmd['chance_level']:.4f} in 95 % of "
        "draws, and may be below 0",
    )
    distance, floor = quality["spectrum_distance_db"], quality["spectrum_distance_floor_db"]
    yield (
        "Spectrum distance (dB)",
        f"{distance:.2f}",
        f"{floor:.2f}",
        _grade_of(distance, floor),
        f"texture; in the upper third of the frequencies {_signed(quality['spectrum_high_frequency_db'], 2)} dB "
        f"(real {_signed(quality['spectrum_high_frequency_floor_db'], 2)}): below 0 speckle is missing, above 0 there is noise",
    )
    for tissue, statistics in quality["speckle"].items():
        if numbers := statistics["snr"]:
            yield (
                f"Speckle SNR, {tissue.replace('_', ' ')}",
                f"{numbers['synthetic']:.2f}",
                f"{numbers['real']:.2f}",
                _grade_of(numbers["distance"], numbers["floor"]),
                f"medians; distance of the distributions {numbers['distance']:.3f}, floor {numbers['floor']:.3f}",
            )
    yield (
        "Diversity, 1 − MS-SSIM",
        _fixed(varied["mean"]),
        _fixed(varied["real_mean"]),
        "",
        varied["note"]
        or f"between images of one label map ({varied['num_maps']} maps); real: between patients, which differ in anatomy too. "
        "Near 0: the model draws one image again and again",
    )
    for space in ("pixel", "feature"):
        n = quality["memorisation"][space]
        yield (
            f"Memorisation, {space}s",
            f"{n['median_synthetic']:.3g}",
            f"{n['median_real']:.3g}",
            "far" if n["share_nearer"] > 0.1 else ("off" if n["share_nearer"] > 0.03 else "near"),
            f"distance to the nearest training image (ratio {_fixed(n['ratio'], 2)}); {_percent(n['share_nearer'])} are "
            "nearer than the first percentile of unseen real images (1 % by chance; images of training label maps lie nearer)",
        )
    yield (
        "Dark outside the sector",
        _percent(dark["share_dark"]),
        _percent(dark["real_share_dark"]),
        "" if dark["share_dark"] is None else ("near" if dark["share_dark"] == 1 else "far"),
        f"images whose mean grey outside is below {dark['threshold']:.0f} of 255"
        + (f"; worst {dark['worst_mean_grey']:.2f}" if dark["worst_mean_grey"] is not None else "")
        + (f"; {dark['num_without_sector']} images without a known sector" if dark["num_without_sector"] else ""),
    )


def _grade(difference: float, near: float, far: float) -> str:
    return "near" if difference >= near else ("off" if difference >= far else "far")


def _grade_of(value: float, floor: float | None) -> str:
    """Grade a distance against its floor; without a floor the grade is empty."""
    if floor is None or not floor > 0:
        return ""
    return "near" if value <= NEAR * floor else ("off" if value <= FAR * floor else "far")


def _times(numbers: Mapping[str, Any]) -> str:
    return "no floor" if numbers["ratio"] is None else f"{numbers['ratio']:.2f} times the floor"


def _speckle_rows(speckle: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per tissue and statistic."""
    return [
        {
            "tissue": tissue.replace("_", " "),
            "title": STATISTIC_TITLES[name],
            **(statistics[name] or {"synthetic": None}),
        }
        for tissue, statistics in speckle.items()
        for name in SPECKLE_STATISTICS
    ]


# ---- pictures


def _random_rows(sets: Comparison, readers: tuple[SyntheticReader, RealReader]) -> list[dict[str, Any]]:
    """Return random synthetic images, each beside a random real one of the same view and phase if there is one."""
    generator = np.random.default_rng(sets.seed)
    items, real_items = sets.synthetic.items, sets.real.items
    rows = []
    for index in generator.permutation(len(items))[:NUM_PICTURES]:
        item = items[index]
        alike = [r for r in real_items if all(r.get(k) == item.get(k) for k in ("view", "phase"))] or real_items
        other = alike[int(generator.integers(len(alike)))]
        rows.append({"cells": _pair(readers[0](item), "synthetic") + _pair(readers[1](other), "real")})
    return rows


def _worst_rows(sets: Comparison, reader: SyntheticReader, segmenter: JudgingSegmenter) -> list[dict[str, Any]]:
    """Return the images on which the segmenter's Dice is lowest."""
    dice = sets.synthetic.image_dice
    by_case = {item["case"]: item for item in sets.synthetic.items}
    rows = []
    for case in dice.sort_values(kind="stable").index[:NUM_PICTURES]:
        echo = reader(by_case[case])
        label_maps, _ = segmenter([echo])
        cells = _pair(echo, "synthetic")
        text = f"what the segmenter finds, Dice {dice[case]:.3f}"
        cells.append(picture_cell(overlay(echo.image, label_maps[0], echo.spacing_mm), f"{case}: {text}", text))
        rows.append({"cells": cells})
    return rows


def _closest_rows(
    sets: Comparison, found: Mapping[str, Neighbours], readers: tuple[SyntheticReader, RealReader]
) -> list[dict[str, Any]]:
    """Return the synthetic images nearest to a training image, in pixels and in features, beside that image."""
    rows = []
    for space, n in found.items():
        for i in np.argsort(n.synthetic, kind="stable")[: NUM_PICTURES // 2]:
            fake, real = sets.synthetic.items[i], sets.reference.items[n.synthetic_indices[i]]
            where = f"nearest in {space}s, distance {n.synthetic[i]:.3g} (median of unseen real images {np.median(n.real):.3g})"
            cells = [
                _picture(readers[0](fake), f"synthetic {fake['case']}"),
                _picture(readers[1](real), f"training {real['case']}"),
            ]
            rows.append({"cells": cells, "title": where})
    return rows


def _pair(echo: Echo, kind: str) -> list[dict[str, Any]]:
    """Return an image alone, and with its label map."""
    case = echo.item["case"]
    with_map = overlay(echo.image, echo.label_map, echo.spacing_mm)
    return [
        _picture(echo, f"{kind} {case}"),
        picture_cell(with_map, f"{kind} {case} with its label map", "with its label map"),
    ]


def _picture(echo: Echo, caption: str) -> dict[str, Any]:
    return picture_cell(overlay(echo.image, None, echo.spacing_mm), caption, caption)


# ---- plots


def _boxes(axes: Any, groups: Sequence[Mapping[str, NDArray[Any]]], titles: Sequence[str]) -> None:
    """Draw the boxes of each group, one per set of images."""
    for i, group in enumerate(groups):
        for j, (name, values) in enumerate(group.items()):
            if len(values):
                axes.boxplot(
                    [values],
                    positions=[i + (j - (len(group) - 1) / 2) * 0.28],
                    widths=0.23,
                    patch_artist=True,
                    boxprops={"facecolor": COLOURS[name], "alpha": 0.8},
                    medianprops={"color": "black"},
                    flierprops={"markersize": 2, "alpha": 0.5},
                )
    axes.set_xticks(range(len(titles)), titles)
    axes.set_xlim(-0.6, len(titles) - 0.4)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _legend(figure: Any, names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    titles = {"synthetic": "synthetic", "real": "real, compared", "reference": "real, reference"}
    handles = [Patch(facecolor=COLOURS[name], alpha=0.8, label=titles[name]) for name in names]
    figure.legend(handles=handles, ncols=len(handles), loc="outside upper center", frameon=False, fontsize=9)


def _dice_plot(sets: Comparison) -> bytes:
    """Draw the Dice of each image by structure."""
    figure = new_figure(7, 3.3, DPI)
    axes = figure.subplots()
    both = {"synthetic": sets.synthetic.rows, "real": sets.real.rows}
    names = list(dict.fromkeys(row["structure"] for row in sets.synthetic.rows))
    titles = {s.name: s.prompt_words for s in STRUCTURES}
    groups = [
        {k: np.array([r["dice"] for r in rows if r["structure"] == n]) for k, rows in both.items()} for n in names
    ]
    _boxes(axes, groups, [titles[name] for name in names])
    axes.set_ylabel("Dice of an image")
    _legend(figure, list(both))
    return png_of(figure)


def _spectra_plot(quality: Mapping[str, Any]) -> bytes:
    """Draw mean power spectra, and their difference to the reference."""
    spectra = {name: np.array(quality["spectrum"][f"{name}_db"]) for name in COLOURS}
    frequency = np.arange(1, len(spectra["real"]) + 1) / quality["data"]["image_size"]
    figure = new_figure(9, 3.3, DPI)
    left, right = figure.subplots(1, 2)
    for name, values in spectra.items():
        left.plot(frequency, values, color=COLOURS[name], lw=1.8)
        if name != "reference":
            right.plot(frequency, values - spectra["reference"], color=COLOURS[name], lw=1.8)
    right.axhline(0, color=COLOURS["reference"], lw=1.8)
    left.set_ylabel("mean power (dB)")
    right.set_ylabel("against the reference (dB)")
    for axes in (left, right):
        axes.set_xlabel("frequency (cycles a pixel)")
        axes.grid(alpha=0.3)
    _legend(figure, list(spectra))
    return png_of(figure)


def _speckle_plot(sets: Comparison) -> bytes:
    """Draw each statistic by tissue."""
    figure = new_figure(11, 6, DPI)
    for axes, name in zip(figure.subplots(2, 2).flat, SPECKLE_STATISTICS):
        _boxes(
            axes,
            [sets.statistics(tissue, name) for tissue in TISSUES],
            [tissue.replace("_", " ") for tissue in TISSUES],
        )
        axes.set_ylabel(STATISTIC_TITLES[name])
    _legend(figure, list(COLOURS))
    return png_of(figure)


def _nearest_plot(found: Mapping[str, Neighbours]) -> bytes:
    """Draw histograms of the distances to the nearest training image."""
    figure = new_figure(9, 3.1, DPI)
    units = {"pixel": "root mean square grey levels", "feature": "root mean square deviations"}
    for axes, (space, n) in zip(figure.subplots(1, len(found)), found.items()):
        edges = np.histogram_bin_edges(np.concatenate([n.synthetic, n.real]), bins=24)
        for name, values in (("synthetic", n.synthetic), ("real", n.real)):
            weights = np.full(len(values), 1 / len(values))
            axes.hist(values, edges, weights=weights, color=COLOURS[name], alpha=0.65)
        axes.axvline(np.percentile(n.real, 1), color="black", lw=1, ls=":")
        axes.set_xlabel(f"in {space}s ({units[space]})")
        axes.set_ylabel("share of images")
    _legend(figure, ["synthetic", "real"])
    return png_of(figure)


# ---- the page


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")
