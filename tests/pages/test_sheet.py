"""Test the sheet: one page whatever it holds, the same bytes each time, and nothing in its texts is markup."""

from __future__ import annotations

import dataclasses
import io
import re
import zlib
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
from PIL import Image

from synboost_monai.pages import sheet_pdf as on_paper
from synboost_monai.pages.sheet import Card, Curve, Sheet, SheetPicture, SheetTable, cleaned, plain, sheet_html
from synboost_monai.pages.sheet_pdf import sheet_pdf


def picture(height: int = 40, width: int = 60) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def make_sheet(text: str = "words", number: int = 1, **changes: object) -> Sheet:
    """Return a sheet whose texts are all `text`, with a number of everything that it can hold several of."""
    table = SheetTable(text, (text, text), [(text, "1")] * number, (2, 1), frozenset({1}), frozenset({0}))
    sheet = Sheet(
        language="en",
        title=text,
        details=[(text, text)] * number,
        warning=text,
        verdict=text,
        is_good=False,
        reasons=[text] * number,
        cards=[Card(text, "1", "ml", text, text)] * 5,
        pictures=[SheetPicture(picture(), text)] * number,
        legend=[(text, "#ff0000")],
        curves=[Curve(text, [0, 1, 2], [1.0, float("nan"), 3.0], [0], [2])] * min(2, number),
        curve_words=(text, text, text, text, text),
        main=table,
        side=table,
        footer=(text, text),
    )
    return dataclasses.replace(sheet, **changes)  # type: ignore[arg-type]


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, str]]:
    """Return x, y in mm and text of every line that is drawn while the test runs."""
    found: list[tuple[float, float, str]] = []
    write = on_paper._Page.text

    def noted(page: on_paper._Page, x: float, y: float, text: str, *args: object, **options: object) -> None:
        found.append((x, y, text))
        write(page, x, y, text, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(on_paper._Page, "text", noted)
    return found


@pytest.mark.parametrize("number", [0, 1, 3, 40])
def test_everything_is_on_one_page(number: int, places: list[tuple[float, float, str]]) -> None:
    long = (
        "a rather long sentence of many words that goes on until it has to be cut somewhere, as there is no room " * 4
    )
    pdf = sheet_pdf(make_sheet(long, number, details=[("label", "value")] * min(8, number)))
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 1
    assert all(0 < x < on_paper.WIDTH and 0 < y < on_paper.HEIGHT - 5 for x, y, _ in places)
    foot = on_paper.HEIGHT - on_paper.FOOT
    inside = [y for _, y, text in places if y < foot]
    assert len(places) - len(inside) == 2  # the footer's lines alone lie below its line
    assert number < 40 or [text for *_, text in places if text.endswith("+35")] == []
    assert number < 40 or any("+23" in text for *_, text in places)  # 18 rows fit: 17 of 40 and how many more


def test_the_same_sheet_gives_the_same_bytes_without_a_date() -> None:
    pdf = sheet_pdf(make_sheet())
    assert pdf == sheet_pdf(make_sheet()) and pdf.startswith(b"%PDF-")
    assert b"CreationDate" not in pdf and b"ModDate" not in pdf
    assert sheet_html(make_sheet()) == sheet_html(make_sheet())


@pytest.mark.parametrize(
    "text",
    [
        "$\\frac{$",
        "<script>alert(1)</script>",
        "$\\frac{1}{2}$ {{ 7 * 7 }} & <b>",
        "a\x1b[31m\u202eb\0c\nd",
        "山田 Łukasz",
    ],
)
def test_texts_are_not_markup(text: str, recwarn: pytest.WarningsRecorder) -> None:
    html = sheet_html(make_sheet(text))
    assert (
        "<script" not in html
        and "<b>w" not in html
        and "49" not in re.sub(r"base64,[^\"]*", "", html).split("<body")[1]
    )
    assert not set(html) & set("\x1b\u202e\0")
    assert sheet_pdf(make_sheet(text)).startswith(b"%PDF-")
    assert not [str(w.message) for w in recwarn if "Glyph" in str(w.message)]


def test_long_texts_are_cut_and_control_characters_removed() -> None:
    assert plain("a\x00b\u202ec\n d") == "a b c d"
    assert plain("x" * 500) == "x" * 299 + "…"
    sheet = cleaned(make_sheet("\n" + "y" * 999))
    assert {len(sheet.title), len(sheet.main.rows[0][0]), len(sheet.curves[0].label), len(sheet.details[0][1])} == {300}
    assert sheet.pictures[0].png == picture()


def test_a_doubted_number_is_marked_in_both_forms(places: list[tuple[float, float, str]]) -> None:
    card = Card("volume", "61", "ml", "normal 46–106", "in doubt")
    sheet = make_sheet(cards=[card, dataclasses.replace(card, label="other", mark="")])
    html = sheet_html(sheet)
    assert html.count('class="card marked"') == 1 and html.count("in doubt") == 1
    assert html.count('<tr class="marked">') == 2  # the first row of each table
    sheet_pdf(sheet)
    assert [text for *_, text in places].count("in doubt") == 1


def test_the_text_of_the_pdf_is_text() -> None:
    """Letters of the title are shown by the page's own content, not as curves."""
    pdf = sheet_pdf(make_sheet("Zeitreise"))
    streams = [
        zlib.decompress(s) for s in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL) if s[:1] == b"x"
    ]
    assert any(b"Zeitreise" in re.sub(rb"\)\s*-?[\d.]+\s*\(", b"", stream) for stream in streams)


def test_neither_settings_of_the_process_nor_other_threads_change_a_page() -> None:
    sheet = make_sheet("words")
    wanted = sheet_pdf(sheet)
    with matplotlib.rc_context({"font.family": "monospace"}), ThreadPoolExecutor(3) as pool:
        assert set(pool.map(sheet_pdf, [sheet] * 6)) == {wanted}
        assert matplotlib.rcParams["font.family"] == ["monospace"]
