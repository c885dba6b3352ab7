"""Test paths without the words that identify, and cells that no spreadsheet executes."""

from __future__ import annotations

import time

import pytest

from synboost_monai.hospital.privacy import path_display, path_sha256, redact, visible

WORDS = frozenset({"doe", "jane", "li", "004711", "20240305", "2024/03/05", "muller", "mueller", "山田"})


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("studies/IM_0001", "studies/IM_0001"),
        ("DOE_JANE/IM_0001", "[hidden]_[hidden]/IM_0001"),
        ("DoeJane20240305.dcm", "[hidden].dcm"),
        ("xdoex/a", "x[hidden]x/a"),
        ("2024/03/05/IM1", "[hidden]/IM1"),
        ("MRN004711-4ch", "MRN[hidden]-4ch"),
        ("Müller/Mu\u0308ller/MUELLER/M\udcfcller", "[hidden]/[hidden]/[hidden]/[hidden]"),
        ("山田太郎/1", "[hidden]太郎/1"),
        ("Li_Wei/clip", "[hidden]_Wei/clip"),
        ("list/delivery", "list/delivery"),
        ("", ""),
    ],
)
def test_identifying_words_are_hidden(path: str, shown: str) -> None:
    assert redact(path, WORDS) == shown


def test_words_may_come_in_any_case() -> None:
    assert redact("a doe", frozenset({"DOE"})) == "a [hidden]"
    assert redact("a doe", frozenset()) == "a doe"


def test_many_words_take_no_time() -> None:
    words = frozenset(f"name{number:05}" for number in range(20_000)) | WORDS
    started = time.process_time()
    for number in range(200):
        assert redact(f"archive/jane/series{number}/IM_0001", words) == f"archive/[hidden]/series{number}/IM_0001"
    assert time.process_time() - started < 2


def test_ways_to_show_a_path() -> None:
    path = "doe\n/\udce9"
    assert path_display("plain")(path) == "doe\\n/\\xe9"
    assert path_display("redacted", WORDS)(path) == "[hidden]\\n/\\xe9"
    assert path_display("hashed")(path) == path_sha256(path)[:16] != path_display("hashed")("doe\n/é")
    with pytest.raises(ValueError, match="redacted, plain, hashed, not 'shown'"):
        path_display("shown")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb\x7f\0", "a\\x1b[31mb\\x7f\\x00"),
        ("\u202egnp.mcd\u200b\ufeff", "\\u202egnp.mcd\\u200b\\ufeff"),
        ("a\\nb\r\n\t", "a\\\\nb\\r\\n\\t"),
        ("\udcff\u2028\U000e0001", "\\xff\\u2028\\U000e0001"),
        ("ü 山 'quoted', too", "ü 山 'quoted', too"),
    ],
)
def test_everything_shows(text: str, shown: str) -> None:
    assert visible(text) == shown
