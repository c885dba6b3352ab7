"""Test the paths of a run: inputs are kept, names of results are sound, links in a run's folder are not followed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from synboost_monai.files import atomic_path, image_stem
from synboost_monai.paths import (
    MAX_NAME_BYTES,
    open_own,
    own_folder,
    refuse_overwriting,
    remove_own_folder,
    result_names,
    temporary_name,
)

LONGEST_ENDS = ("_spread.nii.gz", "_spread.mha", ".json")


def same(folder: Path) -> Path:
    return folder / "in" / "a.png"


def by_a_linked_folder(folder: Path) -> Path:
    (folder / "link").symlink_to("in")
    return folder / "link" / "a.png"


def by_a_linked_file(folder: Path) -> Path:
    (folder / "b.png").symlink_to("in/a.png")
    return folder / "b.png"


def by_a_hard_link(folder: Path) -> Path:
    os.link(folder / "in" / "a.png", folder / "b.png")
    return folder / "b.png"


def by_dots(folder: Path) -> Path:
    return folder / "in" / ".." / "in" / "a.png"


@pytest.mark.parametrize("way", [same, by_a_linked_folder, by_a_linked_file, by_a_hard_link, by_dots])
def test_an_output_that_is_an_input_is_refused(tmp_path: Path, way: Callable[[Path], Path]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"image")
    output = way(tmp_path)
    with pytest.raises(ValueError, match=r"a\.png: this run reads it and would replace it .*give another"):
        refuse_overwriting([tmp_path / "new.png", output], [None, [{"image": str(tmp_path / "in" / "a.png")}]])
    refuse_overwriting([output], [{"image": str(tmp_path / "other.png")}])


def test_an_input_that_is_a_link_is_kept_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.png").write_bytes(b"image")
    (tmp_path / "a.png").symlink_to("store/a.png")
    for output in (tmp_path / "a.png", tmp_path / "store" / "a.png"):
        with pytest.raises(ValueError, match="would replace it"):
            refuse_overwriting([output], [tmp_path / "a.png"])


def test_the_datalist_of_a_folder_is_an_input(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text("{}")
    with pytest.raises(ValueError, match="datalist.json"):
        refuse_overwriting([tmp_path / "datalist.json"], [tmp_path])
    refuse_overwriting([tmp_path / "model.pt"], [tmp_path])


def test_the_message_counts_the_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"0\.png: .*, and so 2 more; pack elsewhere"):
        refuse_overwriting(paths, paths, "pack elsewhere")


def names_of(*names: str) -> list[str]:
    paths = [f"/data/{name}" for name in names]
    return result_names(paths, [image_stem(path) for path in paths])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.nii.gz", "b.mhd"], ["a", "b"]),
        (["a.nii.gz", "b/a.nii.gz"], ["a", "b_a"]),
        (["x/a.png", "y/z/a.png", "x/b.png"], ["x_a", "y_z_a", "b"]),
        ([".hidden.png", "b.png"], ["hidden", "b"]),
        (["._a.png", "-rf.png"], ["_a", "rf"]),
        (["....png"], ["image"]),
        (["a\nb\t\x1b[0m.png"], ["a_b__[0m"]),
        (["Ä ö.png", "心.png"], ["Ä ö", "心"]),
    ],
)
def test_names_are_those_of_the_images(names: list[str], expected: list[str]) -> None:
    assert names_of(*names) == expected


@pytest.mark.parametrize(
    "names",
    [
        ["a.nii.gz", "A.nii.gz"],
        ["\u00e9.png", "e\u0301.png"],
        ["a.png", "a_spread.png", "a_spread_spread.png"],
        ["A_spread.png", "a.png"],
        ["b_a.png", "a.png", "b/a.png"],
        ["a.png", ".a.png", "-a.png"],
        ["a.png", "a.nii.gz", "a.mhd"],
        ["datalist.png", "Datalist_spread.png"],
        ["x" * 250 + ".png", "x" * 251 + ".png", "\u00e9" * 125 + ".png"],
        [f"{'d' * 200}/{'e' * 200}/a.png", f"{'d' * 200}/{'e' * 201}/a.png"],
        ["\udcff.png", "_.png"],
    ],
)
def test_names_of_results_are_unique_visible_and_short(names: list[str]) -> None:
    found = names_of(*names)
    files = [name + end for name in found for end in ("", *LONGEST_ENDS, ".nii.gz", ".json")]
    compared = {file.casefold().replace("e\u0301", "\u00e9") for file in files}
    assert len(compared) == len({*files}) and len({*found}) == len(names)
    assert "datalist.json" not in compared
    for file in files:
        assert len(file.encode()) <= MAX_NAME_BYTES and file[0] not in ".-" and file.isprintable()
    assert names_of(*names) == found and names_of(*names[::-1]) == found[::-1]


def test_an_image_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="/data/a.png: is listed twice"):
        names_of("a.png", "b.png", "a.png")


@pytest.mark.parametrize("name", ["a" * 248 + ".nii.gz", "\u00e9" * 124 + ".nii.gz", "model.pt"])
def test_a_temporary_name_ends_as_the_file_does_and_fits(tmp_path: Path, name: str) -> None:
    found = temporary_name(name)
    assert len(os.fsencode(found)) <= MAX_NAME_BYTES and found.endswith(name[-7:])
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def link(path: Path) -> None:
    (path.parent / "precious").write_bytes(b"precious")
    path.symlink_to(path.parent / "precious")


def dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("make", [link, dangling_link, os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("flags", [os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDONLY])
def test_only_regular_files_of_a_run_are_opened(tmp_path: Path, make: Callable[[Path], None], flags: int) -> None:
    make(tmp_path / ".lock")
    with pytest.raises(ValueError, match=r"\.lock: expected a file of this run"):
        os.close(open_own(tmp_path / ".lock", flags))
    assert not (tmp_path / "elsewhere").exists()
    assert make is not link or (tmp_path / "precious").read_bytes() == b"precious"


def test_a_file_of_a_run_is_opened_and_emptied(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")  # the folder itself may be reached by a link
    for text in (b"first", b"2nd"):
        descriptor = open_own(tmp_path / "linked" / "file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, text)
        os.close(descriptor)
    assert (tmp_path / "real" / "file").read_bytes() == b"2nd"
    assert not (tmp_path / "real" / "file").stat().st_mode & 0o111


def test_folders_of_a_run_are_no_links(tmp_path: Path) -> None:
    (tmp_path / "precious" / "inner").mkdir(parents=True)
    (tmp_path / "studies").symlink_to("precious")
    with pytest.raises(ValueError, match="studies: expected a folder of this run, got a link to precious"):
        own_folder(tmp_path / "studies")
    remove_own_folder(tmp_path / "studies" / "inner")
    assert (tmp_path / "precious" / "inner").is_dir()
    remove_own_folder(tmp_path / "studies")
    assert (tmp_path / "precious" / "inner").is_dir() and not (tmp_path / "studies").is_symlink()
    assert own_folder(own_folder(tmp_path / "new")).is_dir()
    remove_own_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()
