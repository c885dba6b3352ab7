"""The words of prompts: how they are spelled in several ways, what says nothing of a structure, and structures that nobody taught.

`understanding` reads prompts with these tables; the structures that a network finds, and their synonyms, stand in `structures`.
"""

from __future__ import annotations

from dataclasses import dataclass

from synboost_monai.prompts.table import DOMAIN_WORDS, TABLE
from synboost_monai.structures import STRUCTURES, Structure


@dataclass(frozen=True)
class OtherStructure:
    """Something that a prompt may name but no network here was taught."""

    name: str
    """As an error calls it, after "the"."""
    synonyms: tuple[str, ...] = ()
    """Other words for it."""
    is_apart: bool = True
    """Whether it lies apart from all structures that are taught, so that a training may ask for it with an empty mask."""


_OTHER_STRUCTURES = (
    OtherStructure("right ventricle", ("RV", "right ventricular cavity", "right ventricular wall")),
    OtherStructure("right atrium", ("RA", "right atrial cavity")),
    OtherStructure("right heart", ("right side of the heart", "right chambers")),
    OtherStructure("aorta", ("Ao", "aortic root", "aortic arch")),
    OtherStructure("aortic valve", ("AV",)),
    OtherStructure("mitral valve", ("MV", "mitral", "mitral annulus", "mitral leaflet", "bicuspid valve"), False),
    OtherStructure("tricuspid valve", ("TV", "tricuspid", "tricuspid annulus")),
    OtherStructure("pulmonary valve", ("pulmonic valve",)),
    OtherStructure("heart valve", ("valve", "leaflet", "annulus"), False),
    OtherStructure("pulmonary vein", ("pulmonary veins",)),
    OtherStructure("pulmonary artery", ("PA", "pulmonary trunk")),
    OtherStructure("vena cava", ("IVC", "SVC", "caval vein")),
    OtherStructure("coronary artery", ("coronary", "LAD")),
    OtherStructure("coronary sinus", ("sinus",)),
    OtherStructure("outflow tract", ("LVOT", "RVOT", "outflow"), False),
    OtherStructure("atrial appendage", ("left atrial appendage", "LAA", "auricle", "auricule", "herzohr"), False),
    OtherStructure("atrial wall", ("wall of the atrium", "atrial myocardium", "atrial muscle", "LA wall"), False),
    OtherStructure("septum", ("interventricular septum", "IVS", "interatrial septum", "IAS", "septal wall"), False),
    OtherStructure("lateral wall", ("left ventricular lateral wall",), False),
    OtherStructure("anterior wall", ("left ventricular anterior wall",), False),
    OtherStructure("posterior wall", ("left ventricular posterior wall", "LVPW"), False),
    OtherStructure("inferior wall", ("left ventricular inferior wall",), False),
    OtherStructure("apex", (), False),
    OtherStructure("papillary muscle", ("papillary muscles", "papillary"), False),
    OtherStructure("chordae tendineae", ("chordae", "chords"), False),
    OtherStructure("trabeculae", ("trabeculations", "false tendon"), False),
    OtherStructure("epicardium", ("epicardial", "epi"), False),
    OtherStructure("pericardium", ("pericardial sac",), False),
    OtherStructure("pericardial effusion", ("effusion", "pericardial fluid"), False),
    OtherStructure("thrombus", ("clot", "blood clot", "thrombi"), False),
    OtherStructure("tumour", ("tumor", "myxoma", "vegetation"), False),
    OtherStructure("pacemaker lead", ("pacemaker", "pacing lead", "pacing wire", "catheter"), False),
    OtherStructure("prosthesis", ("prosthetic valve", "stent"), False),
    OtherStructure("liver", ("leber", "foie", "higado", "fegato")),
    OtherStructure("lung", ("lungs", "pleura")),
    OtherStructure("kidney", ("kidneys",)),
    OtherStructure("spleen"),
    OtherStructure("stomach"),
    OtherStructure("pancreas"),
    OtherStructure("bladder", ("gallbladder",)),
    OtherStructure("diaphragm"),
    OtherStructure("oesophagus", ("esophagus",)),
    OtherStructure("rib", ("ribs", "sternum", "bone")),
    OtherStructure("spine", ("vertebra",)),
    OtherStructure("thyroid"),
    OtherStructure("brain", ("head", "skull")),
    OtherStructure("breast"),
    OtherStructure("foetus", ("fetus", "baby", "embryo")),
    OtherStructure("uterus", ("womb", "ovary", "prostate")),
    OtherStructure("carotid artery", ("carotid", "jugular vein", "artery", "vein")),
    OtherStructure("background", (), False),
)
_TAUGHT = {words.lower() for s in STRUCTURES for words in (s.words, s.prompt_words, *s.synonyms)}
OTHER_STRUCTURES = tuple(other for other in _OTHER_STRUCTURES if other.name not in _TAUGHT)
"""What people may well ask for in an image of the heart or another ultrasound image, without what networks are taught."""

APART_STRUCTURES = tuple(
    Structure(0, words.replace(" ", "_"), words, (0, 0, 0))
    for other in OTHER_STRUCTURES
    if other.is_apart
    for words in (other.name, *other.synonyms)
)
"""What a training can ask for to teach that it has no mask: all words for all that lies apart from the labelled structures."""

SPELLINGS = {
    "left": "links linke linker linkes linken linkem gauche izquierdo izquierda sinistro sinistra esquerdo esquerda",
    "right": "rechts rechte rechter rechtes rechten rechtem droit droite derecho derecha destro destra direito direita",
    "ventricle": "ventricles ventricular ventrikel ventrikels herzkammer kammer kamer ventricule ventriculo ventricolo",
    "atrium": "atrial atria vorhof vorhofs vorkammer boezem oreillette auricula atrio",
    "cavity": "cavities chamber chambers lumen cavite cavidad cavita cavidade hohle",
    "wall": "walls wand paroi pared parete parede",
    "muscle": "muscles muscular musculature muskel musculo muscolo",
    "blood": "",
    "pool": "",
    "tissue": "",
    "inside": "interior within",
    "around": "surrounding",
    "myocardium": "myocardial myocard myokard herzmuskel hartspier myocarde miocardio myo",
    "endocardium": "endocardial endo",
    "heart": "cardiac hearts herz herzens cardiaque cardiaco cardiaca corazon cuore",
    "valve": "valves",
    "leaflet": "leaflets",
    "aorta": "aortic ao",
    "septum": "septal interventricular interatrial ivs ias",
    "epicardium": "epicardial epi",
    "pericardium": "pericardial",
    "pulmonary": "pulmonic",
}
"""A word -> other forms of it, and the words of other languages that mean it, without accents."""
ABBREVIATIONS = {
    "lv": "left ventricle",
    "lvc": "left ventricle cavity",
    "lvbp": "left ventricle blood pool",
    "lvm": "left ventricle myocardium",
    "la": "left atrium",
    "rv": "right ventricle",
    "ra": "right atrium",
}
"""An abbreviation -> the words of `SPELLINGS` that it stands for."""
SLIPS_OF_LEFT = frozenset("letf lfet elft lleft leeft lefft leftt".split())
"""Slips of the one short word that matters; "loft" and "lift" are words of their own."""

NEGATIONS = frozenset(
    "not no non without except excepting excluding exclude but minus never neither nor other than rather instead outside "
    "everything anything opposite inverse invert inverted complement remove delete ignore hide avoid dont isnt cannot "
    "nicht kein keine keinen ohne ausser pas sans sauf sin excepto menos senza tranne niet geen zonder sem exceto".split()
)
"""Words that turn a prompt round."""
JOINTS = frozenset("and or plus with including containing und oder mit et ou avec y con e com en".split())
"""Words that may join one structure to another."""
FILLERS = frozenset(
    "the a an of in from this that its our your me us please kindly now here there is are was where what which "
    "segment segmentation show find mark mask label outline contour delineate draw highlight see give get locate identify "
    "region area structure whole entire complete full "
    "normal healthy dilated enlarged hypertrophied hypertrophic thickened thick thin big large small "
    "ultrasound image images picture echo echocardiogram echocardiography echocardiographic sonogram scan frame view views "
    "human adult patient patients man woman shape shaped quality systolic diastolic ed es "
    "der die das des dem den von vom im le les du de el los las il lo gli del dello della di do da dos het van teh".split()
).union(
    DOMAIN_WORDS.values(),
    *(attribute.words.values() for attribute in TABLE),
)
"""Words that name no structure and change none: of a request, of the paper's sentences, articles of some languages."""
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred".split()
)
"""Words of an age."""
NUM_STRUCTURES_IN_WORDS = NUMBERS[len(STRUCTURES)]
"""How people say that they mean all structures."""
CONTEXT_PATTERNS = (
    r"\b(?:apical |ap ?|a)?(?:two|four|2|4) ?(?:chambers?|ch|c)\b",
    r"\bapical views?\b",
    rf"\b(?:(?:{'|'.join(NUMBERS)}|and|\d{{1,3}}) )+years? old\b",
    r"\b(?:at |in |during )?(?:the )?(?:end (?:of )?(?:the )?)?(?:systole|diastole|end systolic|end diastolic)(?: cycle| phase| frame)?\b",
    r"\bin the cardiac ultrasound\b",
    r"\bla (?=(?:pared|paroi|parete|cavidad|cavite|cavita|auricula|oreillette)\b)",  # an article there, no abbreviation
)
"""What says nothing of a structure as a whole: view, age, phase, place."""
