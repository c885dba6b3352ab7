"""The one table of labelled structures: index, name, prompt words, colour, synonyms.

Two label maps exist. The segmentation label map (H, W) has the four classes of CAMUS. The sector label map, which conditions
the semantic diffusion model, has a fifth: it tells tissue inside the ultrasound sector from the dark outside of it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Structure:
    """One labelled structure of the apical views."""

    class_index: int
    """Value in a segmentation label map, as in CAMUS."""
    name: str
    """Snake-case name in datalists, metrics and file names."""
    prompt_words: str
    """How a prompt names it (paper, Table 1)."""
    colour: tuple[int, int, int]
    """RGB for overlays, 0..255."""
    synonyms: tuple[str, ...] = ()
    """Other words for it that a prompt may use, in any order and case (`prompts.understanding`)."""

    @property
    def words(self) -> str:
        """Its name as people read it."""
        return self.name.replace("_", " ")


LEFT_VENTRICULAR_CAVITY = Structure(
    1,
    "left_ventricular_cavity",
    "Left ventricular cavity",
    (230, 75, 60),
    (
        *("left ventricle", "LV", "cavity of the left ventricle", "LV cavity", "LVC", "left ventricular chamber"),
        *("left ventricular lumen", "LV lumen", "left ventricular blood pool", "LV blood pool", "LVBP"),
        *("blood in the left ventricle", "inside of the left ventricle", "endocardium", "endocardial cavity"),
        *("left ventricular endocardium", "LV endocardium", "left ventricular endocardial cavity", "LV endo"),
    ),
)
MYOCARDIUM = Structure(
    2,
    "myocardium",
    "Myocardium",
    (60, 170, 90),
    (
        *("heart muscle", "cardiac muscle", "LVM", "myo", "left ventricular myocardium", "LV myocardium", "LV myo"),
        *("left ventricular wall", "LV wall", "wall of the left ventricle", "left ventricular myocardial wall"),
        *(
            "myocardial wall",
            "myocardial tissue",
            "heart muscle tissue",
            "heart wall",
            "left ventricular muscle",
            "LV muscle",
        ),
        *("muscle of the left ventricular wall", "muscle around the left ventricle", "epicardium to endocardium"),
    ),
)
LEFT_ATRIUM = Structure(
    3,
    "left_atrium",
    "Left atrium cavity",
    (70, 120, 230),
    (
        *("LA", "left atrial cavity", "LA cavity", "cavity of the left atrium", "left atrial chamber"),
        *("left atrial lumen", "left atrial blood pool", "LA blood pool", "blood in the left atrium"),
        *("inside of the left atrium",),
    ),
)

STRUCTURES: tuple[Structure, ...] = (LEFT_VENTRICULAR_CAVITY, MYOCARDIUM, LEFT_ATRIUM)
"""All prompted structures, in the order of their class index."""

BACKGROUND_INDEX = 0
"""Class index of everything else in a segmentation label map."""
NUM_CLASSES = 1 + len(STRUCTURES)
"""Classes of a segmentation label map: background and the structures."""

SECTOR_OUTSIDE_INDEX = 0
"""Sector label map: outside the ultrasound sector (dark)."""
SECTOR_TISSUE_INDEX = 2
"""Sector label map: unlabelled tissue inside the sector."""
SECTOR_INDEX_OF_CLASS = {BACKGROUND_INDEX: SECTOR_TISSUE_INDEX, 1: 1, 2: 3, 3: 4}
"""Class index of the segmentation label map -> that of the sector label map, inside the sector."""
NUM_SECTOR_CLASSES = 5
"""Classes of a sector label map: outside, left ventricular cavity, tissue, myocardium, left atrium."""

VIEW_CLASSES = ("no_apical_view", "apical_two_chamber", "apical_four_chamber")
"""What a network with a head for the view says of an image, in the order of its logits."""


def structure_by_name(name: str) -> Structure:
    """The structure called `name` (`left_ventricular_cavity`, `myocardium`, `left_atrium`).

    Raises:
        ValueError: if there is no such structure; the message lists those that exist.
    """
    for structure in STRUCTURES:
        if structure.name == name:
            return structure
    raise ValueError(
        f"structures.py: no structure is called {name!r}; there are {', '.join(s.name for s in STRUCTURES)}"
    )
