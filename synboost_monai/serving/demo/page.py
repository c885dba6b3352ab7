"""Build the page: how its two tabs, segment and synthesise, look, and which event calls what; the other files do the work."""

from __future__ import annotations

import functools
import html
import inspect
import itertools
import logging
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from synboost_monai.errors import one_line, user_error
from synboost_monai.predictor import HIGHEST_STRENGTH, Condition, Synthetic
from synboost_monai.prompts.vocabulary import NUM_STRUCTURES_IN_WORDS
from synboost_monai.records import IMAGE_QUALITIES, PHASES, VIEWS
from synboost_monai.serving.demo import drawing, findings, pictures
from synboost_monai.serving.demo.segmenting import OpenImage, Segmentation, Segmenter, write_segmentation
from synboost_monai.serving.demo.sources import (
    SESSION_PREFIX,
    LabelSource,
    Source,
    draw_phantom,
    file_label_source,
    file_source,
)
from synboost_monai.serving.demo.synthesising import Synthesiser, source_of
from synboost_monai.structures import STRUCTURES

TITLE = "SynBoost-MONAI"
NETWORK = "network"
"""Events of this group wait for each other: one network, one image at a time."""
PAGE = "page"
"""All other events wait for each other too: one file is read at a time."""
MAX_OPEN_BYTES = 2 << 30
"""Most bytes of the images and clips that all pages together have open."""
MAX_DRAWINGS, MAX_LAYERS = 8, 8
"""Most drawings of all pages together that wait to be taken, and most layers of each."""
FORGOTTEN = (600, 86_400)
"""(interval, age) in seconds: at this interval, gradio's files that are older than this age are removed."""
SEGMENT, SYNTHESISE = "segment", "synthesise"
"""Names of the tabs."""
PHANTOM, FILE, DRAWN = "Phantom", "File", "Draw"
"""Sources of an image or label map."""
OUTLINES, FILLED = "Outlines", "Filled"
"""Ways to show masks."""
ATTRIBUTES = ("view", "phase", "sex", "age", "image_quality")
"""Attributes of an image, in the order of their inputs."""
NOT_KNOWN = ("not known", "")
"""(as shown, value) of an attribute that is not known."""
EXAMPLE_PROMPTS = ("left atrium", "myocardium", "left ventricle")
"""Prompts on buttons, to be tried."""
CSS = """
.gradio-container {max-width: 1800px !important; margin: 0 auto !important}
.head h1 {margin: 0; font-size: 1.5rem} .head p {margin: .1rem 0 0}
.research {color: #9a3412; font-weight: 600}
.facts {color: var(--body-text-color-subdued); font-size: .85rem}
.verdict {border-left: 6px solid; border-radius: 6px; padding: .6rem .9rem; background: var(--block-background-fill)}
.verdict.accept {border-color: #15803d} .verdict.review {border-color: #c2410c}
.verdict b {font-size: 1rem} .verdict ul {margin: .35rem 0 0 1.1rem; padding: 0}
.found {border-collapse: collapse; width: 100%; font-size: .85rem; border: 0 !important}
.found tr, .found tbody {border: 0 !important}
.found th, .found td {padding: .25rem .4rem !important; text-align: right; white-space: nowrap; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important}
.found th {font-weight: 600; color: var(--body-text-color-subdued); white-space: normal}
.found th:first-child, .found td:first-child {text-align: left}
@media (max-width: 480px) {.found {font-size: .72rem} .found th, .found td {padding: .2rem .1rem !important; white-space: normal}}
.key {display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin-right: .45rem; vertical-align: -1px}
.said {margin: .2rem 0 0 1.1rem; padding: 0; font-size: .85rem}
.examples button {white-space: nowrap; padding: .2rem; font-size: .75rem}
.pixels img {image-rendering: pixelated}
footer {display: none !important}
"""

logger = logging.getLogger(__name__)


def build_page(
    segmenter: Segmenter, synthesiser: Synthesiser | str, folder: Path, folders: Sequence[Path] = ()
) -> gr.Blocks:
    """Build the whole page.

    Args:
        segmenter: model of the first tab.
        synthesiser: model of the second tab, or the text to show in its place.
        folder: for files of this session.
        folders: further folders, whose files may be opened by their paths.
    """
    places = Places(folder, tuple(folders))
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=FORGOTTEN) as page:
        gr.HTML(
            f'<div class="head"><h1>{TITLE}</h1><p>Echocardiograms segmented by words ({html.escape(segmenter.name)}), and synthesised '
            'from label maps. <span class="research">Research only, not for diagnosis.</span></p></div>'
        )
        with gr.Tabs() as tabs:
            with gr.Tab("Segment", id=SEGMENT):
                first = _SegmentTab(segmenter, places, page)
            with gr.Tab("Synthesise", id=SYNTHESISE):
                if isinstance(synthesiser, str):
                    gr.Markdown(synthesiser)
                else:
                    _SynthesiseTab(synthesiser, places, page, tabs, first)
    return page


@dataclass(frozen=True)
class Places:
    """Hold the folders where files may be read."""

    session: Path
    """Folder of uploads and written files."""
    folders: tuple[Path, ...]
    """Folders whose files may be opened by their paths, from `sources.checked_folder`."""


class _SegmentTab:
    """The first tab has image, prompt and attributes on the left, pictures and findings on the right."""

    def __init__(self, segmenter: Segmenter, places: Places, page: gr.Blocks) -> None:
        self.segmenter, self.places, self.folder = segmenter, places, places.session
        self.open_images: list[weakref.ref[OpenImage]] = []
        self.image = gr.State(None)
        self.result = gr.State(None)
        with gr.Row():
            with gr.Column(scale=4, min_width=340):
                self._inputs()
            with gr.Column(scale=9):
                self._outputs()
        self._wire(page)

    def _inputs(self) -> None:
        self.sources = _Sources("Image or clip: PNG, NIfTI, MetaImage, ultrasound DICOM", self.places)
        self.frame = gr.Slider(1, 2, 1, step=1, label="Frame", visible=False)
        self.prompt = gr.Textbox(
            "",
            label="Prompt: words that name one structure",
            placeholder=f"empty: all {NUM_STRUCTURES_IN_WORDS} structures",
            elem_id="prompt",
        )
        with gr.Row(elem_classes="examples"):
            words = (*EXAMPLE_PROMPTS, f"all {NUM_STRUCTURES_IN_WORDS}")
            self.examples = [gr.Button(word, size="sm", min_width=60) for word in words]
        self.run = gr.Button("Segment", variant="primary", elem_id="segment")
        with gr.Accordion("Said in the prompts when yours is empty", open=True), gr.Group():
            with gr.Row():
                self.view = _dropdown("View", _choices(VIEWS.values()))
                self.phase = _dropdown("Phase", _choices(PHASES.values()))
            with gr.Row():
                self.sex = _dropdown("Sex", _choices(("female", "male")))
                self.age = gr.Number(None, label="Age", precision=0, minimum=0, maximum=120, min_width=110)
            self.quality = _dropdown("Image quality", _choices(IMAGE_QUALITIES))

    def _outputs(self) -> None:
        self.facts = gr.HTML(elem_classes="facts")
        with gr.Row():
            self.image_picture = _picture("Image", "image-picture")
            self.mask_picture = _picture("Masks", "mask-picture")
            self.spread_picture = _picture("Where prompts disagree (spread)", "spread-picture")
        with gr.Row():
            self.style = gr.Radio([OUTLINES, FILLED], value=OUTLINES, show_label=False, container=False, scale=1)
            self.download = gr.DownloadButton("Label map (NIfTI)", size="sm", interactive=False, scale=0, min_width=170)
        with gr.Row():
            with gr.Column(scale=4, min_width=240):
                self.verdict = gr.HTML(elem_id="verdict")
            with gr.Column(scale=6, min_width=440):
                self.table = gr.HTML(elem_id="findings")
        self.said = gr.HTML(elem_id="said")

    def _wire(self, page: gr.Blocks) -> None:
        attributes = [self.view, self.phase, self.sex, self.age, self.quality]
        opened = [self.image, self.image_picture, self.facts, self.frame, *attributes]
        shown = [self.mask_picture, self.spread_picture, self.verdict, self.table, self.said, self.download]
        self.opened = [*opened, self.result, *shown]
        self.sources.wire(page, self.draw, self.read, [], self.opened)
        for button, words in zip(self.examples, (*EXAMPLE_PROMPTS, "")):
            _on(button.click, functools.partial(str, words), [], [self.prompt])
        _on(self.frame.release, self.show_frame, [self.image, self.frame], [self.image_picture])
        self._to_segment = [self.image, self.prompt, self.frame, self.style, *attributes]
        self._segmented = [self.result, *shown]
        for event in (self.run.click, self.prompt.submit):
            _on(event, self.segment, self._to_segment, self._segmented, uses_network=True)
        _on(self.style.change, self.restyle, [self.result, self.style], [self.mask_picture])

    def segment_after(self, event: Any) -> None:
        """Segment the image that an event of another tab has opened."""
        _on(event.success, self.segment, self._to_segment, self._segmented, uses_network=True)

    def draw(self, seed: float, view: str, phase: str) -> list[Any]:
        """Open a phantom, to be segmented."""
        return self.accept(draw_phantom(_whole(seed, "seed"), view, phase, self.folder).source())

    def read(self, path: str | None, folders: Sequence[Path]) -> list[Any]:
        """Open a file that lies in one of the folders."""
        if not path:
            raise ValueError("name an image file first")
        return self.accept(file_source(path, folders))

    def accept(self, source: Source) -> list[Any]:
        """Return the values of `opened` for an image and its attributes; earlier results are cleared."""
        image = self._kept(self.segmenter.open(source))
        num_frames = len(image.frames)
        known = [image.attributes.get(key) or "" for key in ("view", "phase", "sex")]
        return [
            image,
            pictures.image_picture(image),
            _facts(image),
            gr.Slider(1, max(num_frames, 2), 1, step=1, visible=num_frames > 1, label=f"Frame, 1 to {num_frames}"),
            *known,
            image.attributes.get("age"),
            image.attributes.get("image_quality") or "",
            None,
            *(None, gr.Image(None, visible=True), "", "", ""),
            gr.DownloadButton(value=None, interactive=False),
        ]

    def _kept(self, image: OpenImage) -> OpenImage:
        """Count an image among those that all pages together have open, and return it."""
        self.open_images = [known for known in self.open_images if known() is not None]
        held = sum(other.num_bytes for known in self.open_images if (other := known()) is not None)
        if held + image.num_bytes > MAX_OPEN_BYTES:
            raise ValueError("other pages hold too many long clips open; close them, and try again")
        self.open_images.append(weakref.ref(image))
        return image

    def show_frame(self, image: OpenImage | None, frame: float) -> Any:
        """Show another frame of the clip."""
        return None if image is None else pictures.image_picture(image, int(frame) - 1)

    def segment(
        self,
        image: OpenImage | None,
        prompt: str,
        frame: float,
        style: str,
        *said: Any,
    ) -> list[Any]:
        """Return the values of `result` and `shown`; what is said of the image comes in the order of `ATTRIBUTES`."""
        if image is None:
            raise ValueError("choose an image first")
        attributes = dict(zip(ATTRIBUTES, said))
        if attributes["age"] is not None:
            attributes["age"] = _whole(attributes["age"], "age")
        index = int(frame) - 1 if len(image.frames) > 1 else 0
        result = self.segmenter.segment(image, prompt or "", attributes, index)
        return [
            result,
            pictures.mask_picture(result, style == FILLED),
            gr.Image(pictures.spread_picture(result), visible=result.spread is not None),
            _verdict(result),
            _table(result),
            _said(result),
            gr.DownloadButton(value=str(write_segmentation(result, self.folder)), interactive=True),
        ]

    def restyle(self, result: Segmentation | None, style: str) -> Any:
        """Draw the masks once more, as outlines or filled."""
        return None if result is None else pictures.mask_picture(result, style == FILLED)


class _SynthesiseTab:
    """The second tab has a label map on the left, and the image synthesised from it on the right."""

    def __init__(
        self, synthesiser: Synthesiser, places: Places, page: gr.Blocks, tabs: gr.Tabs, first: _SegmentTab
    ) -> None:
        self.synthesiser, self.places, self.folder, self.first = synthesiser, places, places.session, first
        self.numbers = itertools.count(1)
        self.source, self.condition, self.synthetic = gr.State(None), gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(scale=4, min_width=340):
                self._inputs()
            with gr.Column(scale=9):
                self._outputs()
        self._wire(page, tabs)

    def _inputs(self) -> None:
        self.sources = _Sources("Label map: NIfTI, MetaImage or PNG with classes 0 to 3", self.places, DRAWN)
        (drawn_group,) = self.sources.further_groups
        with drawn_group:
            colours = drawing.brush_colours()
            height, width = drawing.CANVAS_SHAPE
            self.editor = gr.ImageEditor(
                label="Paint or outline the structures",
                brush=gr.Brush(default_size=10, colors=list(colours), default_color=colours[0], color_mode="fixed"),
                eraser=gr.Eraser(default_size=14),
                sources=(),
                transforms=(),
                layers=False,
                buttons=[],
                canvas_size=(width, height),
                fixed_canvas=True,
                height=380,
                format="png",
                elem_id="editor",
            )
            _bound_drawings(self.editor)
            gr.HTML(_legend() + f" The sector counts as {drawing.CANVAS_DEPTH_MM:.0f} mm deep.", elem_classes="facts")
            self.take_drawing = gr.Button("Take the drawing", size="sm")
        with gr.Accordion("Perturbation", open=True), gr.Row():
            self.strength = gr.Slider(
                0, HIGHEST_STRENGTH, 0, step=0.1, label="Strength (1: as published)", min_width=180
            )
            self.perturbation_seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80)
        self.noise_seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0, elem_id="noise-seed")
        with gr.Row():
            self.run = gr.Button("Synthesise", variant="primary", elem_id="synthesise")
            self.stop = gr.Button("Stop", variant="stop", min_width=80, scale=0)

    def _outputs(self) -> None:
        self.progress = gr.HTML("", elem_id="progress", elem_classes="facts")
        with gr.Row():
            self.map_picture = _picture("Label map in the network's square", "map-picture", "pixels")
            self.image_picture = _picture("Synthetic image", "synthetic-picture", "pixels")
        gr.HTML(_legend(), elem_classes="facts")
        self.send = gr.Button("Segment this", interactive=False, elem_id="send")

    def _wire(self, page: gr.Blocks, tabs: gr.Tabs) -> None:
        perturbation = [self.strength, self.perturbation_seed]
        outputs = [self.source, self.condition, self.map_picture]
        self.sources.wire(page, self.draw, self.read, perturbation, outputs)
        _on(self.take_drawing.click, self.take, [self.editor, *perturbation], outputs)
        for event in (self.strength.release, self.perturbation_seed.change):
            _on(event, self.perturb, [self.source, *perturbation], outputs)
        taken = _on(self.run.click, self.take_what_is_drawn, [self.sources.kind, self.editor, *perturbation], outputs)
        started = _on(
            taken.success,
            self.synthesise,
            [self.condition, self.noise_seed],
            [self.image_picture, self.progress, self.synthetic, self.send],
            uses_network=True,
        )
        self.stop.click(lambda: "Stopped.", None, [self.progress], cancels=[started], api_visibility="private")
        _on(self.sources.kind.change, self.show_canvas, [self.sources.kind], [self.editor])
        sent = _on(self.send.click, self.hand_over, [self.synthetic], [tabs, *self.first.opened])
        self.first.segment_after(sent)

    def draw(self, seed: float, view: str, phase: str, strength: float, perturbation_seed: float) -> list[Any]:
        """Open a phantom's label map."""
        phantom = draw_phantom(_whole(seed, "seed"), view, phase, self.folder)
        return self.perturb(phantom.label_source(), strength, perturbation_seed)

    def read(self, path: str | None, folders: Sequence[Path], strength: float, seed: float) -> list[Any]:
        """Open a label map from a file that lies in one of the folders."""
        if not path:
            raise ValueError("name a label map's file first")
        return self.perturb(file_label_source(path, folders), strength, seed)

    def take(self, editor: dict[str, Any] | None, strength: float, perturbation_seed: float) -> list[Any]:
        """Open a hand drawing as a label map."""
        label_map = drawing.drawn_label_map((editor or {}).get("layers") or [])
        source = drawing.write_drawing(label_map, self.folder / f"drawing{next(self.numbers)}.nii.gz")
        return self.perturb(source, strength, perturbation_seed)

    def take_what_is_drawn(self, chosen: str, editor: dict[str, Any] | None, strength: float, seed: float) -> Any:
        """Take the drawing as it is now, if drawing was chosen."""
        return self.take(editor, strength, seed) if chosen == DRAWN else gr.skip()

    def show_canvas(self, chosen: str) -> Any:
        """Put the empty sector into the editor once it is visible; put in earlier, it is not drawn."""
        return gr.ImageEditor(value=_empty_canvas()) if chosen == DRAWN else gr.skip()

    def perturb(self, source: LabelSource | None, strength: float, seed: float) -> list[Any]:
        """Return the values of source, condition and its picture."""
        if source is None:
            raise ValueError("choose a label map first")
        condition = self.synthesiser.condition(source, float(strength), _whole(seed, "seed"))
        return [source, condition, pictures.stretched(condition.picture)]

    def synthesise(self, condition: Condition | None, seed: float) -> Iterator[list[Any]]:
        """Yield the image while it comes out of the noise."""
        if condition is None:
            raise ValueError("choose a label map first")
        for step in self.synthesiser.steps(condition, _whole(seed, "seed")):
            is_done = step.result is not None
            words = f"Step {step.done} of {step.total}" + (": done" if is_done else "")
            yield [pictures.stretched(step.picture), words, step.result, gr.Button(interactive=is_done)]

    def hand_over(self, synthetic: Synthetic | None) -> list[Any]:
        """Open the synthetic image in the first tab, and bring that tab to the front."""
        if synthetic is None:
            raise ValueError("synthesise an image first")
        source = source_of(synthetic, self.folder, f"synthetic{next(self.numbers)}")
        return [gr.Tabs(selected=SEGMENT), *self.first.accept(source)]


# ---- parts of the page


class _Sources:
    """Make the inputs of a tab that choose its image or label map: a phantom, or a file, which is uploaded or named by its path.

    Args:
        label: of the upload.
        places: where files may be read; a path can be named only if there are folders whose files may be opened.
        further: names of further kinds of sources, whose groups (`further_groups`) the tab fills.
    """

    def __init__(self, label: str, places: Places, *further: str) -> None:
        self.places = places
        self.kind, phantom_group, file_group, *self.further_groups = _choice_of(PHANTOM, FILE, *further)
        with phantom_group:
            seed = gr.Number(1, label="Seed of the phantom", precision=0, minimum=0, elem_classes="phantom-seed")
            with gr.Row():
                view = _dropdown("View", _pairs(VIEWS.values()), list(VIEWS.values())[1])
                phase = _dropdown("Phase", _pairs(PHASES.values()), next(iter(PHASES.values())))
        self.phantom = [seed, view, phase]
        with file_group:
            is_shown = bool(places.folders)
            example = str(places.folders[0] / "patient0001_4CH_ED.nii.gz") if is_shown else ""
            self.upload = gr.File(label=label, height=130)
            self.path = gr.Textbox(
                label="or a path on this machine", placeholder=example, max_lines=1, visible=is_shown
            )
            self.open_path = gr.Button("Open", size="sm", visible=is_shown)

    def wire(
        self,
        page: gr.Blocks,
        draw: Callable[..., Any],
        read: Callable[..., Any],
        further_inputs: list[Any],
        outputs: list[Any],
    ) -> None:
        """Call `draw` (seed, view, phase, ...) for a phantom, `read` (path, folders, ...) for a file, with the further inputs last."""
        for event in (page.load, *(part.change for part in self.phantom)):
            _on(event, draw, [*self.phantom, *further_inputs], outputs)

        def read_upload(path: str | None, *values: Any) -> Any:
            return read(path, [self.places.session], *values)

        def read_path(path: str | None, *values: Any) -> Any:
            return read((path or "").strip(), self.places.folders, *values)

        _on(self.upload.upload, read_upload, [self.upload, *further_inputs], outputs)
        for event in (self.open_path.click, self.path.submit) if self.places.folders else ():
            _on(event, read_path, [self.path, *further_inputs], outputs)


def _choice_of(*names: str) -> list[Any]:
    """Make a choice, and for each of its words a group that is visible while the word is chosen."""
    kind = gr.Radio(list(names), value=names[0], show_label=False, container=False)
    groups = [gr.Group(visible=name == names[0]) for name in names]
    _on(kind.change, lambda chosen: [gr.Group(visible=chosen == name) for name in names], [kind], groups)
    return [kind, *groups]


def _dropdown(label: str, choices: list[tuple[str, str]], value: str = "") -> gr.Dropdown:
    return gr.Dropdown(choices, value=value, label=label, filterable=False, min_width=110)


def _bound_drawings(editor: gr.ImageEditor) -> None:
    """Bound the drawings that pages send, and their layers; gradio keeps whatever comes, under any number of names."""
    accept = editor.accept_blobs

    def accept_blobs(data: Any) -> Any:
        index = data.data.get("index")
        if str(index).isdecimal() and int(index) >= MAX_LAYERS:
            raise gr.Error(f"a drawing has at most {MAX_LAYERS} layers", print_exception=False)
        for name in [*editor.blob_storage][: -MAX_DRAWINGS + 1]:
            if name != data.data.get("id"):
                editor.blob_storage.pop(name, None)
        return accept(data)

    accept_blobs._is_server_fn = True  # type: ignore[attr-defined]
    editor.accept_blobs = accept_blobs  # type: ignore[method-assign]


def _empty_canvas() -> dict[str, Any]:
    """Return the editor's value before anything is drawn."""
    return {"background": drawing.canvas(), "layers": [], "composite": None}


def _picture(label: str, elem_id: str, elem_classes: str | None = None) -> gr.Image:
    return gr.Image(
        label=label,
        interactive=False,
        format="png",
        buttons=["fullscreen"],
        elem_id=elem_id,
        elem_classes=elem_classes,
        min_width=220,
    )


def _on(
    event: Any, handler: Callable[..., Any], inputs: list[Any], outputs: list[Any], uses_network: bool = False
) -> Any:
    """Wire an event; mistakes are shown as sentences."""
    group = {"concurrency_id": NETWORK if uses_network else PAGE, "concurrency_limit": 1}
    shown = "full" if uses_network else "hidden"
    return event(_explained(handler), inputs, outputs, show_progress=shown, api_visibility="private", **group)


def _explained(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler whose errors reach the page as one sentence, never as a traceback."""

    @functools.wraps(handler)
    def call(*values: Any) -> Any:
        try:
            return handler(*values)
        except Exception as error:
            raise _as_sentence(error) from None

    @functools.wraps(handler)
    def generate(*values: Any) -> Iterator[Any]:
        try:
            yield from handler(*values)
        except Exception as error:
            raise _as_sentence(error) from None

    return generate if inspect.isgeneratorfunction(handler) else call


def _as_sentence(error: Exception) -> gr.Error:
    """Return the page's sentence for an error: the library's own words if a user can cause it."""
    known = user_error(error)
    if known is None:
        logger.exception("the demo's page: an error of ours", exc_info=error)
        return gr.Error("An error of this program; its terminal says more.", print_exception=False)
    # an uploaded file is named without the folder that gradio put it into
    words = re.sub(rf"\S*/{SESSION_PREFIX}[^/\s]*/(?:[0-9a-f]{{40,}}/)?", "", one_line(known))
    return gr.Error(html.escape(words), print_exception=False)


def _choices(words: Any) -> list[tuple[str, str]]:
    return [NOT_KNOWN, *_pairs(words)]


def _pairs(words: Any) -> list[tuple[str, str]]:
    """Return (as shown, value) of each word."""
    return [(word.replace("_", " ").removeprefix("apical "), word) for word in words]


def _whole(number: float | None, name: str) -> int:
    if number is None or not float(number).is_integer():
        raise ValueError(f"the {name} must be a whole number, got {number}")
    return int(number)


# ---- texts as HTML


def _facts(image: OpenImage) -> str:
    """Return name, size and spacing of an image; nothing else of its file."""
    num_frames, height, width = image.frames.shape
    frames = f"{num_frames} frames, " if num_frames > 1 else ""
    if image.spacing_mm is None:
        scale = "no calibration"
    else:
        scale = f"{image.spacing_mm[0]:.3g} × {image.spacing_mm[1]:.3g} mm a pixel"
    return f"<b>{html.escape(image.name)}</b> &nbsp; {frames}{height} × {width} pixels, {scale}"


def _key(colour: tuple[int, int, int]) -> str:
    return f'<span class="key" style="background:rgb{colour}"></span>'


def _legend() -> str:
    return " &nbsp; ".join(f"{_key(s.colour)}{s.prompt_words}" for s in STRUCTURES)


def _verdict(result: Segmentation) -> str:
    doubt = result.doubt
    listed = "".join(f"<li>{html.escape(reason)}</li>" for reason in findings.reasons(doubt))
    basis = "calibrated" if doubt["calibrated"] else "the network's own opinion, not calibrated"
    return (
        f'<div class="verdict {doubt["verdict"]}"><b>{findings.VERDICT_WORDS[doubt["verdict"]]}</b>'
        f"<div>Predicted Dice {doubt['predicted_dice']:.2f} ({basis})</div><ul>{listed}</ul></div>"
    )


def _table(result: Segmentation) -> str:
    rows = findings.structure_findings(result)
    has_truth = any(row.dice is not None for row in rows)
    head = ["", "Predicted Dice", "Spread", "Area", *(["True Dice"] if has_truth else [])]
    lines = ["".join(f"<th>{words}</th>" for words in head)]
    for row in rows:
        cells = [
            _key(row.colour) + html.escape(row.words),
            f"{row.predicted_dice:.2f}",
            "–" if row.mean_spread is None else f"{row.mean_spread:.3f}",
            "–" if row.area_cm2 is None else f"{row.area_cm2:.1f} cm²",
            *([f"{row.dice:.2f}" if row.dice is not None else "–"] if has_truth else []),
        ]
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    measures = [
        f"<td>{measure.words}</td><td>{measure.value}{html.escape(measure.reason and f' ({measure.reason})')}</td>"
        for measure in findings.ventricle_measures(result)
    ]
    notes = ["True Dice: with the label map that the image was made from."] if has_truth else []
    notes += [] if result.image.spacing_mm else [findings.NO_CALIBRATION]
    notes += [words] if (words := findings.view_in_words(result.doubt)) else []
    note = " ".join([*notes, "Not for diagnosis."])
    tables = ["".join(f"<tr>{line}</tr>" for line in part) for part in (lines, measures) if part]
    return "".join(f'<table class="found">{body}</table>' for body in tables) + f'<div class="facts">{note}</div>'


def _said(result: Segmentation) -> str:
    listed = "".join(f"<li>{html.escape(text) or '(the empty prompt)'}</li>" for text in result.prompts)
    return f'<b>Prompts used for the masks shown</b><ul class="said">{listed}</ul>'
