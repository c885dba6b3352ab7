"""The one table of the words on a study's sheet, in every language; those of quantities are in `quantities.QUANTITIES`.

A further language is a further word in each line here and in that table.
"""

from __future__ import annotations

from synboost_monai.quantities import LANGUAGES, QUANTITIES, Words

WORDS: dict[str, Words] = {
    "title": ("Left heart: echocardiography", "Linkes Herz: Echokardiographie"),
    "not_for_diagnosis": ("For research. Not for diagnosis.", "Für die Forschung. Nicht zur Diagnose."),
    "name": ("Name", "Name"),
    "id": ("Patient ID", "Patienten-ID"),
    "born": ("Date of birth", "Geburtsdatum"),
    "sex": ("Sex", "Geschlecht"),
    "study_date": ("Study date", "Untersuchungsdatum"),
    "study": ("Study", "Untersuchung"),
    "views": ("Views", "Schnittebenen"),
    "female": ("female", "weiblich"),
    "male": ("male", "männlich"),
    "accept": ("No doubt about the contours that were measured", "Kein Zweifel an den gemessenen Konturen"),
    "review": ("Review by a physician is needed before use", "Vor Gebrauch ärztliche Prüfung nötig"),
    "nothing": ("nothing could be measured", "nichts konnte gemessen werden"),
    "in_doubt": ("in doubt", "fraglich"),
    "not_measured": ("not measured", "nicht gemessen"),
    "normal": ("normal {range}", "normal {range}"),
    "measure": ("Quantity", "Messgröße"),
    "value": ("Value", "Wert"),
    "unit": ("Unit", "Einheit"),
    "range": ("Normal range", "Normbereich"),
    "method": ("Method", "Methode"),
    "mark": ("Mark", "Hinweis"),
    "above": ("above range", "über Norm"),
    "below": ("below range", "unter Norm"),
    "measures": ("Measurements", "Messwerte"),
    "curves": ("Volume of the left ventricle, single plane", "Volumen des linken Ventrikels, eine Ebene"),
    "no_curves": ("No calibrated clip has a volume curve", "Keine kalibrierte Schleife hat eine Volumenkurve"),
    "seconds": ("time in s", "Zeit in s"),
    "frames": ("frame", "Bild"),
    "millilitres": ("ml", "ml"),
    "beats": ("Whole beats", "Vollständige Schläge"),
    "beat": ("Beat", "Schlag"),
    "edv": ("EDV", "EDV"),
    "esv": ("ESV", "ESV"),
    "ef": ("EF", "EF"),
    "biplane": ("biplane", "biplan"),
    "four_chamber": ("four-chamber view", "Vierkammerblick"),
    "two_chamber": ("two-chamber view", "Zweikammerblick"),
    "header": ("header", "Kopfdaten"),
    "from_times": ("beats of the clip", "Schläge der Schleife"),
    "four_chamber_short": ("4C", "4K"),
    "two_chamber_short": ("2C", "2K"),
    "end_diastole": ("end-diastole", "Enddiastole"),
    "end_systole": ("end-systole", "Endsystole"),
    "frame": ("frame {number}", "Bild {number}"),
    "other_frame": ("frame", "Bild"),
    "by_tag": ("by the header", "laut Kopfdaten"),
    "by_option": ("as chosen", "wie vorgegeben"),
    "by_network": ("as the network sees it", "wie das Netz sie sieht"),
    "by_model": ("the model's opinion", "Meinung des Modells"),
    "by_unknown": ("not known", "nicht bekannt"),
    "left_ventricular_cavity": ("left ventricular cavity", "Höhle des linken Ventrikels"),
    "myocardium": ("myocardium", "Myokard"),
    "left_atrium": ("left atrium", "linker Vorhof"),
    "all_structures": ("all structures", "alle Strukturen"),
    # Reasons of a doubt, by the codes of heart.doubt and heart.anatomy
    "low_predicted_dice": ("its outline is probably not accurate enough", "Kontur vermutlich nicht genau genug"),
    "high_spread": ("different prompts give different outlines", "verschiedene Prompts ergeben verschiedene Konturen"),
    "empty": ("it was not found", "nicht gefunden"),
    "removed": ("a large stray piece was removed", "ein großes loses Stück wurde entfernt"),
    "filled": ("a large hole was filled", "ein großes Loch wurde gefüllt"),
    "not_apical": ("this does not look like an apical view", "sieht nicht wie ein apikaler Schnitt aus"),
    "anatomy_missing": ("it is missing", "fehlt"),
    "anatomy_pieces": ("it is in several pieces", "besteht aus mehreren Stücken"),
    "anatomy_hole": ("there is a hole in or beside it", "hat ein Loch in sich oder neben sich"),
    "anatomy_closed": ("it has no opening at its base", "hat an der Basis keine Öffnung"),
    "anatomy_opening": ("its wall has a second opening", "seine Wand hat eine zweite Öffnung"),
    "anatomy_apart": ("it does not reach the ventricle", "reicht nicht an den Ventrikel heran"),
    "anatomy_order": ("it lies on the wrong side of the ventricle", "liegt auf der falschen Seite des Ventrikels"),
    "anatomy_outside_sector": ("it reaches out of the sector", "reicht aus dem Sektor heraus"),
    "anatomy_range": ("size or shape is unusual for an adult", "Größe oder Form ist für Erwachsene ungewöhnlich"),
    "other_reason": ("it is in doubt, see measurements.json", "fraglich, siehe measurements.json"),
    # Warnings of measures, by how they begin
    "the view is": (
        "the view is only the network's opinion: a person has to confirm it",
        "die Schnittebene ist nur die Meinung des Netzes: bitte bestätigen",
    ),
    "the beat reaches": ("the beat reaches an end of the clip", "der Schlag reicht an ein Ende der Schleife"),
    "the views' long axes": (
        "the long axes of the two views differ by more than 10 %: one of them may be foreshortened",
        "die Längsachsen der beiden Schnitte unterscheiden sich um mehr als 10 %: einer ist vielleicht verkürzt",
    ),
    "the end-systolic": (
        "the end-systolic volume is the larger one",
        "das endsystolische Volumen ist das größere",
    ),
    "other_warning": ("see the warnings in measurements.json", "siehe Warnungen in measurements.json"),
    "made_by": (
        "{software}, {model}, weights {weights}, settings {settings}. Not verified by a physician.",
        "{software}, {model}, Gewichte {weights}, Einstellungen {settings}. Nicht ärztlich geprüft.",
    ),
    "ranges_of": (
        "Normal ranges: {source}. Single-plane values, and mass from apical contours, are only roughly comparable with them.",
        "Normbereiche: {source}. Werte aus einer Ebene und die Masse aus apikalen Konturen sind damit nur grob vergleichbar.",
    ),
    "curve_note": (
        "Curves come from contours that were not judged; all numbers with frames and warnings: measurements.json.",
        "Kurven beruhen auf nicht beurteilten Konturen; alle Werte mit Bildern und Warnungen: measurements.json.",
    ),
}
"""Key -> words in each language of `LANGUAGES`; braces hold places for facts."""


def say(key: str, language: str, **facts: object) -> str:
    """Return the words of a key, or of a quantity by its name, in a language, with facts in their places."""
    words = QUANTITIES[key].words if key in QUANTITIES else WORDS[key]
    text = words[LANGUAGES.index(language)]
    return text.format(**facts) if facts else text


def number(value: float, decimals: int, language: str) -> str:
    """Return a number as it is written in a language, with a true minus."""
    text = f"{value:.{decimals}f}".replace("-", "−")
    return text.replace(".", ",") if language == "de" else text
