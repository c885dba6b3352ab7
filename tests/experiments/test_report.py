"""The report of a fabricated run."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from synboost_monai.experiments.report import colour_label_map, overlay, write_report
from synboost_monai.labels import LEFT_ATRIUM, MYOCARDIUM


class _Page(HTMLParser):
    """What a page holds, and whether its tags are balanced."""

    VOID = {"meta", "img", "br", "hr", "link", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id", ""))
        if tag == "img":
            self.images.append(values)
        for name in ("src", "href"):
            if name in values:
                self.links.append(values[name])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_holds_the_numbers_of_the_evaluations(run_dir):
    path = write_report(run_dir)
    page = path.read_text(encoding="utf-8")
    results = pd.read_csv(run_dir / "results.csv")
    assert len(results) == 2 * 3 * 4  # models, strategies, structures and overall
    for _, row in results.iterrows():
        assert f"{row['dice_mean']:.3f}" in page
    overall = results[results.structure == "overall"].set_index(["model", "strategy"])["dice_mean"]
    difference = overall["cris", "synthetic_then_real"] - overall["cris", "real"]
    assert f"{difference:+.3f}".replace("-", "−") in page
    assert "testing section of the phantom data set, which stands for real data: 2 images of 1 patients" in page
    record = json.loads((run_dir / "results.json").read_text())
    assert {r["segmenter"]["strategy"] for r in record["results"]} == {"real", "synthetic", "synthetic_then_real"}
    assert record["settings"]["diffusion"]["train"]["max_epochs"] == 3


def test_report_is_one_file_with_described_pictures(run_dir):
    page = _Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert page.open == []
    # plot; 2 synthetic examples of label map, image, 2 models; 2 test images of image, expert, 6 segmenters
    assert len(page.images) == 1 + 2 * 4 + 2 * 8
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.images)
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    assert anchors and anchors <= page.ids
    assert all(link.startswith(("#", "data:")) for link in page.links)


def test_report_names_times_problems_prompts_and_settings_and_escapes_them(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "patient0007: image is cut off &lt;here&gt;" in page
    assert "A study for tests &lt;with&gt; &amp; signs." in page
    assert re.search(r"prepare the data</th><td class=\"number\">7 s</td><td class=\"number\">2</td>", page)
    assert "synboost prepare phantom real" in page
    assert "Myocardium in four-chamber view of the heart." in page
    assert "max_epochs: 3" in page


def test_report_of_an_unfinished_run_says_what_is_missing(run_dir, tmp_path):
    for summary in run_dir.glob("segmenters/**/summary.json"):
        summary.unlink()
    with pytest.raises(ValueError, match="holds no evaluation yet"):
        write_report(run_dir)
    with pytest.raises(FileNotFoundError, match="has no study.yaml"):
        write_report(tmp_path / "elsewhere")


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
