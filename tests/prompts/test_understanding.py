"""Test free prompts: which structure they name, and which are refused; no prompt may be taken for another structure."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from synboost_monai.prompts import LEVELS, prompt_text
from synboost_monai.prompts.understanding import PromptRefusedError, understand, understand_if_any
from synboost_monai.prompts.vocabulary import FILLERS, JOINTS, NEGATIONS, OTHER_STRUCTURES
from synboost_monai.structures import LEFT_ATRIUM, LEFT_VENTRICULAR_CAVITY, MYOCARDIUM, STRUCTURES, Structure

LV, MYO, LA = LEFT_VENTRICULAR_CAVITY, MYOCARDIUM, LEFT_ATRIUM

UNDERSTOOD = {
    LV: """left ventricle|the left ventricle|LV|lv|L.V.|LV cavity|Left Ventricular Cavity|left-ventricular cavity|ventricle, left
        ventricle left|cavity of the left ventricle|LV blood pool|blood pool of the left ventricle|left ventricular chamber
        endocardium|endocardial cavity|the heart's left ventricle|left cardiac ventricle|left ventricle of the heart, please
        Where is the LV?|segment the left ventricle|dilated left ventricle|left ventricle in A4C at end-diastole
        left ventricle with good image quality|left vntricle|lefft ventricle|left ventrcile|left venttricle|LEFT VENTRICULAR CAVTY
        linker Ventrikel|linke Herzkammer|ventricule gauche|ventrículo izquierdo|ventricolo sinistro|ventrículo esquerdo
        left ventricle of a 70-year-old man in apical four-chamber view""",
    MYO: """myocardium|Myocardium.|heart muscle|cardiac muscle|the heart's muscle|muscle of the heart|LVM|LV wall|left ventricular wall
        left ventricle wall|wall of the left ventricle|left ventricular myocardium|LV myocardium|epicardium to endocardium|heart wall
        muscle around the left ventricle|myocardial tissue|thickened myocardium|mycardium|myocradium|hart muscle|wall, left ventricle
        Herzmuskel|myocarde|miocardio|Wand des linken Ventrikels|la pared del ventrículo izquierdo|músculo cardiaco|miocárdio""",
    LA: """left atrium|LA|la|left atrium (LA)|Please: the LA!|atrium (left)|the LA|left atrial cavity|atrium left|left_atrium|left  ATRIUM!
        cavity of the left atrium
        L.A
        left atrium of the heart|left atrium in the two chamber view|enlarged left atrium|left atrum|left artium|letf atrium
        linker Vorhof|oreillette gauche|l'oreillette gauche|aurícula izquierda|atrio sinistro|átrio esquerdo
        left atrium of a 70 year old woman at end of systole""",
}
REFUSED = {
    "other": """right ventricle|RV|the right ventricle of the heart|rihgt ventricle|right ventricular wall|right atrium|RA|RA cavity
        right heart|aorta|aortic valve|mitral valve|tricuspid valve|pericardium|pericardial effusion|papillary muscle|left papillary muscle
        septum|interventricular septum|pulmonary vein|liver|left lung|left kidney|thrombus|blood clot in the left atrium|pacemaker lead
        left atrial appendage|coronary sinus|left auricle|auricule gauche
        left atrial wall|LA wall|myocardium of the left atrium|LVOT|left ventricular outflow tract
        lateral wall of the left ventricle|apex of the left ventricle|left ventricle with papillary muscles|left and right ventricle
        rechter Ventrikel|oreillette droite|ventrículo derecho|atrio destro|oesophagus|esophagus|left coronary artery|epicardium
        right ventrcle|brain ventricle""",
    "several": """left ventricle and left atrium|LV and LA|LV/LA|LV + LA|left ventricle, left atrium|left ventricle and myocardium
        left ventricle with myocardium|LV LA|left ventricle or left atrium|left ventricle, atrium|linker Ventrikel und linker Vorhof
        endocardium of the left atrium|left ventricle. Myocardium.|left ventricle (myocardium)|LV: myocardium|LV - LA|LV = LA?
        left atrium left ventricle|myocardium around the left ventricle""",
    "negated": """not the left atrium|no left ventricle|everything but the left ventricle|everything except the myocardium
        left ventricle without the myocardium|anything other than the left atrium|ohne linken Vorhof|pas l'oreillette gauche
        don't segment the left atrium|non-myocardium""",
    "unknown": """banana|asdf|a cat|lefr atrium and so on|left vertical|left ventricular hypertrophy|left ventricle volume|lift atrium
        vänster förmak|левый желудочек|左心房|apical left ventricle|basal myocardium|the ventricle on the left|ventricle to the left
        left ventricle of a dog|myocardium 5|left vntricle cavty|endoftext|skeletal muscle|LVEF|three-chamber left ventricle
        leftatrium|P2""",
    "unclear": """ventricle|atrium|the wall|heart|muscle|blood|left|cavity|left heart|ventricular wall|left chamber|left of the ventricle
        the ventricle in the left of the image|blood in the heart muscle|inside of the heart muscle|image|good image quality
        atria""",
}


def listed(text: str) -> list[str]:
    """Return the prompts of a table, separated by bars or lines."""
    return [prompt.strip() for line in text.splitlines() for prompt in line.split("|")]


@pytest.mark.parametrize(("prompt", "structure"), [(p, s) for s, text in UNDERSTOOD.items() for p in listed(text)])
def test_a_prompt_is_understood(prompt: str, structure: Structure) -> None:
    assert understand(prompt).structure == structure


@pytest.mark.parametrize(("prompt", "reason"), [(p, reason) for reason, text in REFUSED.items() for p in listed(text)])
def test_a_prompt_is_refused_with_its_reason(prompt: str, reason: str) -> None:
    with pytest.raises(PromptRefusedError) as error:
        understand(prompt)
    assert error.value.reason == reason
    told = str(error.value)
    assert "\n" not in told and all(structure.words in told for structure in STRUCTURES)


def test_the_tables_are_large_enough() -> None:
    assert sum(len(listed(text)) for text in (*UNDERSTOOD.values(), *REFUSED.values())) >= 150


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_every_synonym_is_understood_with_every_article_and_case(structure: Structure) -> None:
    for words in (structure.words, structure.prompt_words, *structure.synonyms):
        for before in ("", "the ", "a ", "Segment the "):
            for after in ("", " of the heart.", " in the cardiac ultrasound", " please!"):
                for text in (words, words.upper(), words.title(), words.replace(" ", "-")):
                    assert understand(before + text + after).structure == structure, (before, text, after)


@pytest.mark.parametrize("level", LEVELS[1:])
def test_every_sentence_of_the_paper_is_understood(level: str) -> None:
    item = {"view": "apical_two_chamber", "phase": "end_systole", "sex": "female", "image_quality": "poor"}
    for age in (0, 40, 101, 150):
        for shape in ("circle", "triangle", "oval", "square", "rectangle"):
            known = {**item, "age": age, "shape": {s.name: shape for s in STRUCTURES}}
            for phrasing in (0, 1):
                for is_synthetic in (False, True):
                    options = {"phrasing": phrasing, "is_synthetic": is_synthetic, "domain_word": True}
                    for structure in STRUCTURES:
                        assert understand(prompt_text(structure, level, known, **options).text).structure == structure


def slips(text: str) -> Iterator[str]:
    """Return a text with each letter left out, doubled, changed or put before its neighbour."""
    for i, letter in enumerate(text):
        yield text[:i] + text[i + 1 :]
        yield text[: i + 2][:i] + text[i : i + 2][::-1] + text[i + 2 :]
        for other in {*"aeilrtvm ", string.ascii_lowercase[i % 26]}:
            yield text[:i] + other + text[i + 1 :]
            yield text[:i] + other + letter + text[i + 1 :]


def test_no_slip_turns_one_structure_into_another() -> None:
    """This holds for whole words: an abbreviation with another letter is another abbreviation."""
    num_understood = num_slips = 0
    for structure in STRUCTURES:
        for words in (structure.words, *structure.synonyms):
            for text in slips(f"the {words.lower()}"):
                if (
                    set(text.split()) & {"la", "lv", "ra", "rv", "lvm", "lvc", "av", "mv", "tv"}
                    and structure.words not in text
                ):
                    continue
                num_slips += 1
                try:
                    assert understand(text).structure == structure, (words, text)
                    num_understood += 1
                except PromptRefusedError:
                    pass
    assert num_understood > 0.4 * num_slips


def test_no_slip_turns_another_structure_into_ours() -> None:
    for other in OTHER_STRUCTURES:
        for words in (other.name, *other.synonyms):
            for text in slips(words.lower()):
                is_abbreviation = len(words) <= 4 or "la " in words.lower()
                if not is_abbreviation:
                    with pytest.raises(PromptRefusedError):
                        found = understand(text)
                        pytest.fail(f"{text!r} of {words!r} is {found.reading}")


def test_the_reading_names_the_slip_and_the_prompt_keeps_its_words() -> None:
    assert understand("  the  LA ").prompt == "the LA" and understand("LA").reading == "read as left atrium"
    assert understand("left atrum").reading == "read as left atrium (atrum as atrium)"


@pytest.mark.parametrize(
    "prompt", ["", "  ", "all", "All structures", "segment all three structures", "everything in the image"]
)
def test_all_structures_are_no_single_one(prompt: str) -> None:
    assert understand_if_any(prompt) is None
    assert understand_if_any("the LA") == understand("the LA")


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        ("the atrium", "; do you mean the left atrium;"),
        ("ventricle", "; do you mean the left ventricular cavity or the myocardium;"),
        ("good image", "was taught; there are"),
    ],
)
def test_words_that_name_too_little_get_a_hint(prompt: str, hint: str) -> None:
    with pytest.raises(PromptRefusedError, match=hint):
        understand(prompt)


def test_a_prompt_that_is_no_plain_words_or_too_long_is_refused_first() -> None:
    for prompt in ("$left atrium", "left\x00atrium", "left atrium " * 40):
        with pytest.raises(ValueError, match="a prompt"):
            understand(prompt)


def test_the_tables_do_not_contradict_each_other() -> None:
    assert not FILLERS & JOINTS and not FILLERS & NEGATIONS and not JOINTS & NEGATIONS
    names = [set(map(str.lower, (s.words, *s.synonyms))) for s in STRUCTURES]
    names += [set(map(str.lower, (o.name, *o.synonyms))) for o in OTHER_STRUCTURES]
    assert sum(map(len, names)) == len(set().union(*names))


def test_the_page_on_prompts_has_the_whole_table() -> None:
    page = (Path(__file__).parents[2] / "docs/howto/prompts.md").read_text(encoding="utf-8")
    for structure in STRUCTURES:
        assert f"| {structure.words} | {structure.class_index} | {', '.join(structure.synonyms)} |" in page
    assert f"Known by name, to be refused by it: {', '.join(other.name for other in OTHER_STRUCTURES)}." in page
    bullets = page.split("- In any order")[1].split("## What is refused")[0].replace("`prompt_level`", "")
    assert [understand(prompt).structure for prompt in bullets.split("`")[1::2]] == [LV, LA, LA, LV, MYO]
    part = page.split("## What is refused")[1].split("Known by name")[0]
    rows = [row.split("|")[1] for row in part.splitlines() if row.startswith("| `")]
    for prompt in (prompt for row in rows for prompt in row.split("`")[1::2]):
        with pytest.raises(PromptRefusedError):
            understand(prompt)
