"""Test that an environment that cannot run MONAI Label is reported, with all faults and their correction."""

from __future__ import annotations

from importlib import metadata

import pytest

from synboost_monai.serving.label.versions import check_versions, version_problems

GOOD = {
    "monailabel": "0.8.5",
    "numpy": "1.26.4",
    "pydicom": "2.4.5",
    "pydicom-seg": "0.4.1",
    "monai": "1.6.1",
    "torch": "2.13.0+cpu",
}


def problems(python: tuple[int, ...] = (3, 11, 7), **changes: str | None) -> list[str]:
    versions = {**GOOD, **{name.replace("_", "-"): version for name, version in changes.items()}}

    def installed(name: str) -> str:
        if versions[name] is None:
            raise metadata.PackageNotFoundError(name)
        return str(versions[name])

    return version_problems(installed, python)


def test_environment_that_fits_has_no_problem():
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numpy": "2.4.6"}, "numpy 2.4.6 is here, numpy >=1.26,<2 is needed"),
        ({"pydicom": "3.0.2"}, "pydicom 3.0.2 is here, pydicom >=2.4.5,<3 is needed"),
        ({"monailabel": None}, "monailabel >=0.8.5,<0.8.6 is missing"),
        ({"monailabel": "0.9.0"}, "monailabel 0.9.0 is here"),
        ({"pydicom_seg": None}, "pydicom-seg is missing"),
        ({"monai": "1.4.0rc1"}, "monai 1.4.0rc1 is here, monai >=1.6.1 is needed"),
        ({"python": (3, 13, 0)}, "Python 3.13.0 is here, >=3.10,<3.13 is needed"),
    ],
)
def test_each_clash_is_told(changes, message):
    (problem,) = problems(**changes)
    assert problem.startswith(message)


def test_message_names_the_script():
    if not version_problems():
        pytest.skip("this is MONAI Label's own environment")
    with pytest.raises(ValueError, match=r"cannot run MONAI Label: .*`bash scripts/setup_label.sh` builds one"):
        check_versions()
