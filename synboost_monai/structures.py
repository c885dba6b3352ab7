"""The one table of labelled structures; what depends on which structures there are is derived from it.

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
    title: str = ""
    """Heading of its column in a wide table."""
    short_name: str = ""
    """Heading of its column in a narrow table."""
    code: tuple[str, str] = ("", "")
    """SNOMED CT code and meaning in DICOM (CID 12305; the cavity of the ventricle has no code of its own, the segment's label names it)."""
    tissue: str = ""
    """BLOOD or MUSCLE: structures of one tissue have the same speckle."""
    sector_index: int = 0
    """Value in a sector label map, as in the published weights."""
    token_ids: tuple[int, ...] = ()
    """CLIP's token ids of its P1 prompt, first phrasing; networks use them when they are given no prompt."""

    @property
    def words(self) -> str:
        """Its name as people read it."""
        return self.name.replace("_", " ")


BLOOD, MUSCLE = "blood", "myocardium"
"""Tissues of structures."""

LEFT_VENTRICULAR_CAVITY = Structure(
    class_index=1,
    name="left_ventricular_cavity",
    prompt_words="Left ventricular cavity",
    colour=(230, 75, 60),
    title="LV cavity",
    short_name="LV",
    code=("87878005", "Left ventricle"),
    tissue=BLOOD,
    sector_index=1,
    token_ids=(49406, 1823, 1240, 9511, 4927, 43156, 539, 518, 1936, 269, 49407),
    synonyms=(
        *("left ventricle", "LV", "cavity of the left ventricle", "LV cavity", "LVC", "left ventricular chamber"),
        *("left ventricular lumen", "LV lumen", "left ventricular blood pool", "LV blood pool", "LVBP"),
        *("blood in the left ventricle", "inside of the left ventricle", "endocardium", "endocardial cavity"),
        *("left ventricular endocardium", "LV endocardium", "left ventricular endocardial cavity", "LV endo"),
    ),
)
MYOCARDIUM = Structure(
    class_index=2,
    name="myocardium",
    prompt_words="Myocardium",
    colour=(60, 170, 90),
    title="Myocardium",
    short_name="myocardium",
    code=("49848007", "Left Ventricle Myocardium"),
    tissue=MUSCLE,
    sector_index=3,
    token_ids=(49406, 16206, 811, 2903, 539, 518, 1936, 269, 49407),
    synonyms=(
        *("heart muscle", "cardiac muscle", "LVM", "myo", "left ventricular myocardium", "LV myocardium", "LV myo"),
        *("left ventricular wall", "LV wall", "wall of the left ventricle", "left ventricular myocardial wall"),
        *("myocardial wall", "myocardial tissue", "heart muscle tissue", "heart wall", "left ventricular muscle"),
        *("LV muscle",),
        *("muscle of the left ventricular wall", "muscle around the left ventricle", "epicardium to endocardium"),
    ),
)
LEFT_ATRIUM = Structure(
    class_index=3,
    name="left_atrium",
    prompt_words="Left atrium cavity",
    colour=(70, 120, 230),
    title="Left atrium",
    short_name="LA",
    code=("82471001", "Left atrium"),
    tissue=BLOOD,
    sector_index=4,
    token_ids=(49406, 1823, 29725, 43156, 539, 518, 1936, 269, 49407),
    synonyms=(
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
CLASS_NAMES = {str(BACKGROUND_INDEX): "background", **{str(s.class_index): s.name for s in STRUCTURES}}
"""Class of a segmentation label map -> its name, as JSON files have it."""

SECTOR_OUTSIDE_INDEX = 0
"""Sector label map: outside the ultrasound sector (dark)."""
SECTOR_TISSUE_INDEX = 2
"""Sector label map: unlabelled tissue inside the sector."""
SECTOR_INDEX_OF_CLASS = {BACKGROUND_INDEX: SECTOR_TISSUE_INDEX, **{s.class_index: s.sector_index for s in STRUCTURES}}
"""Class index of the segmentation label map -> that of the sector label map, inside the sector."""
_SECTOR_NAMES = {SECTOR_OUTSIDE_INDEX: "outside the sector", SECTOR_TISSUE_INDEX: "tissue in the sector"}
_SECTOR_NAMES |= {s.sector_index: s.name for s in STRUCTURES}
SECTOR_CLASS_NAMES = {str(index): _SECTOR_NAMES[index] for index in sorted(_SECTOR_NAMES)}
"""Class of a sector label map -> its name, as JSON files have it."""
NUM_SECTOR_CLASSES = len(SECTOR_CLASS_NAMES)
"""Classes of a sector label map: outside, tissue and the structures."""

VIEW_CLASSES = ("no_apical_view", "apical_two_chamber", "apical_four_chamber")
"""What a network with a head for the view says of an image, in the order of its logits."""


def structure_by_name(name: str) -> Structure:
    """Return the structure called `name` (`left_ventricular_cavity`, `myocardium`, `left_atrium`).

    Raises:
        ValueError: if there is no such structure; the message lists those that exist.
    """
    for structure in STRUCTURES:
        if structure.name == name:
            return structure
    raise ValueError(
        f"structures.py: no structure is called {name!r}; there are {', '.join(s.name for s in STRUCTURES)}"
    )
