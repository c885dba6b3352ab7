"""The one table of labelled structures: index, name, prompt words, colour.

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


LEFT_VENTRICULAR_CAVITY = Structure(1, "left_ventricular_cavity", "Left ventricular cavity", (230, 75, 60))
MYOCARDIUM = Structure(2, "myocardium", "Myocardium", (60, 170, 90))
LEFT_ATRIUM = Structure(3, "left_atrium", "Left atrium cavity", (70, 120, 230))

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

NUM_VIEW_PHASE_CLASSES = 5
"""Classes of what a diffusion model can be told of an image: 0 unknown, 1 + 2 view index + phase index (`ViewPhaseClassd`)."""


def structure_by_name(name: str) -> Structure:
    """The structure called `name` (`left_ventricular_cavity`, `myocardium`, `left_atrium`).

    Raises:
        ValueError: if there is no such structure; the message lists those that exist.
    """
    for structure in STRUCTURES:
        if structure.name == name:
            return structure
    raise ValueError(f"labels.py: no structure is called {name!r}; there are {', '.join(s.name for s in STRUCTURES)}")
