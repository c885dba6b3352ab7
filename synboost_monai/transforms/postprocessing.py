"""Turn logits in the network's square into one label map on the image's own grid, and assess its doubt.

S: structures, one logit each. E: groups of S prompts that mean the same (a prompt ensemble); logit e * S + s belongs to group e and
structure s. N: side of the square. H, W: native rows and columns. T: frames of a clip.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from synboost_monai.formats.grid import to_display, to_stored
from synboost_monai.heart.doubt import (
    FREE_PROMPT,
    DoubtAssessor,
    mask_overlaps,
    segmentation_evidence,
    view_evidence,
)
from synboost_monai.letterbox import LetterboxGeometry
from synboost_monai.networks.view_head import NUM_VIEW_LOGITS, split_view
from synboost_monai.prompts.understanding import understand_if_any
from synboost_monai.structures import BACKGROUND_INDEX, STRUCTURES, Structure
from synboost_monai.transforms.array import masks_of_label_map, plain, resize
from synboost_monai.transforms.ultrasound_dicom import CALIBRATED_KEY, stored_order

Item = Mapping[Hashable, Any]

SPREAD_KEY, EVIDENCE_KEY, DOUBT_KEY = "spread", "evidence", "doubt"
"""Item keys of the results that `RestoreLabelMapd` and `AssessDoubtd` add beside the label map."""
JUDGED_KEY = "judged"
"""Item key of the label map of all structures, which `RestoreLabelMapd` adds for `AssessDoubtd` if the prompt names only one."""
RESULT_KEY = "result"
"""Item key of the values that MONAI Label puts into the JSON of its answer."""
LARGE_PIECE = 0.2
"""Smallest share of the largest piece from which a piece is kept: the structure is then torn, and the anatomy checks report it."""

_FOUR = ndimage.generate_binary_structure(2, 1)
_EIGHT = ndimage.generate_binary_structure(2, 2)


def restore_logits(logits: Tensor, geometry: LetterboxGeometry) -> Tensor:
    """Resample logits (S, N, N) to the native grid (S, H, W): remove the padding, then interpolate bilinearly."""
    g = geometry
    return resize(_without_padding(logits, g).float(), g.native_height, g.native_width)


def mean_logits(logits: Tensor) -> Tensor:
    """Compute the logit of the mean probability of logits (E, ...): log mean p - log mean (1 - p), exact where p is close to 0 or 1."""
    logits = logits.float()
    return F.logsigmoid(logits).logsumexp(dim=0) - F.logsigmoid(-logits).logsumexp(dim=0)


def logits_to_label_map(
    logits: Tensor, class_indices: Sequence[int] | None = None, threshold: float = 0.5, *, together: bool = False
) -> Tensor:
    """Make one label map from the logits of several structures, by the arbitration rule.

    A pixel belongs to the structure with the highest logit if that structure's probability is above the threshold, else to the
    background. No two structures overlap, therefore, and with one structure the rule is the plain threshold.

    Where a network is sure of the heart but not of which structure, that rule leaves a gap: with 0.48 for the cavity and 0.48 for the
    myocardium, a pixel is background.

    Args:
        logits: (S, H, W) or (B, S, H, W).
        class_indices: class of each channel; None: `structures.STRUCTURES` in their order.
        threshold: probability, in (0, 1).
        together: compare the sum of the structures' probabilities with the threshold in place of the highest one, so that there are no
            such gaps. The probabilities may be added because no two structures share a pixel.
    Returns:
        (H, W) or (B, H, W), uint8.
    """
    indices = [s.class_index for s in STRUCTURES] if class_indices is None else list(class_indices)
    if len(indices) != logits.shape[-3]:
        raise ValueError(f"postprocessing.py: {len(indices)} class indices for logits of {logits.shape[-3]} structures")
    if not 0 < threshold < 1:
        raise ValueError(f"postprocessing.py: threshold is a probability between 0 and 1, got {threshold}")
    highest, winner = logits.max(dim=-3)
    classes = torch.tensor(indices, dtype=torch.uint8, device=logits.device)[winner]
    if together:
        is_heart = logits.float().sigmoid().sum(dim=-3) > threshold
    else:
        is_heart = highest > float(np.log(threshold / (1 - threshold)))
    return torch.where(is_heart, classes, BACKGROUND_INDEX).to(torch.uint8)


def remove_strays(label_map: NDArray[np.uint8], class_indices: Sequence[int]) -> NDArray[np.uint8]:
    """Remove stray pieces: each structure keeps its largest connected piece, and any that is not much smaller (`LARGE_PIECE`).

    Pixels are connected to their eight neighbours. Removed pixels become background.

    Args:
        label_map: (H, W).
        class_indices: classes of the structures.
    """
    kept = label_map.copy()
    for index in class_indices:
        pieces, count = ndimage.label(label_map == index, _EIGHT)
        if count > 1:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = sizes[1:].max()  # background stays
            kept[(sizes < LARGE_PIECE * sizes[0])[pieces]] = BACKGROUND_INDEX
    return kept


def fill_enclosed(
    label_map: NDArray[np.uint8], logits: NDArray[np.float32], class_indices: Sequence[int]
) -> NDArray[np.uint8]:
    """Fill background that is enclosed by structures, both holes in one structure and gaps between several.

    A pixel of an enclosed pocket goes to the structure with the highest logit among those that touch the pocket.

    Args:
        label_map: (H, W).
        logits: (S, H, W).
        class_indices: class of each channel.
    """
    is_labelled = label_map != BACKGROUND_INDEX
    enclosed = ndimage.binary_fill_holes(is_labelled) & ~is_labelled
    if not enclosed.any():
        return label_map
    pockets, count = ndimage.label(enclosed, _FOUR)
    at = np.nonzero(enclosed)
    pocket = pockets[at]
    touches = np.zeros((len(class_indices), count + 1), dtype=bool)
    for i, index in enumerate(class_indices):
        beside = ndimage.binary_dilation(label_map == index, _EIGHT)
        touches[i, pocket[beside[at]]] = True
    winner = np.where(touches[:, pocket], logits[:, at[0], at[1]], -np.inf).argmax(axis=0)
    filled = label_map.copy()
    filled[at] = np.asarray(class_indices, dtype=np.uint8)[winner]
    return filled


class RestoreLabelMapd(MapTransform):
    """Turn logits (E * S, N, N) into a label map on the image's native grid, in the stored order of its file.

    The result is (1, W, H, 1) uint8 with the image's affine: a volume of one plane, the only shape that MONAI Label writes back
    with the affine kept. For a clip, logits (T, E * S, N, N), it is (1, W, H, T). For a file that stores its axes in another order or
    direction (`display_order` of the meta data), it is the volume in that order. `WriteLabelMaps` and `display_order` handle it.

    Several groups of prompts (E > 1) become one logit per structure, that of their mean probability. Then `spread` is added, a
    MetaTensor of the label map's shape, float32 in [0, 0.5]: in each pixel the standard deviation of the probability over the groups,
    for the structure where it is largest. With one group there is no `spread`. `evidence` is always added: the result of
    `segmentation_evidence` for each frame, for `AssessDoubtd`.

    Args:
        keys: logits.
        prompt: the free prompt of the inferer. The logits are always those of the three structures, arbitrated into one label map
            (see `logits_to_label_map`) that is judged as a whole; the result shows only the structure that the prompt names.
        threshold: probability above which a pixel belongs to a structure.
        keep_largest: remove stray pieces (`remove_strays`). False, as published, and fill_holes False: the plain arbitration.
        fill_holes: leave no gap between structures that the network can hardly tell apart (`together` of `logits_to_label_map`);
            afterwards fill holes and enclosed gaps (`fill_enclosed`).
        free_words: as in the inferer. If the prompt itself went to the network, its logit comes first, and the result is its mask;
            `evidence` says how much that mask overlaps with each structure of the label map.
        with_view: as in the inferer: the last four planes are the logits of the view; `evidence` says what they mean.
    Raises:
        ValueError: if the prompt does not name one structure (`understand`).
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        prompt: str = "",
        threshold: float = 0.5,
        keep_largest: bool = False,
        fill_holes: bool = False,
        free_words: bool = False,
        with_view: bool = False,
    ) -> None:
        super().__init__(keys)
        self.understood = understand_if_any(prompt)
        self.goes_itself = self.understood is not None and self.understood.goes_itself(free_words)
        self.threshold = threshold
        self.keep_largest, self.fill_holes = keep_largest, fill_holes
        self.with_view = with_view

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        geometry = LetterboxGeometry(*(int(n) for n in item["geometry"]))
        meta = dict(item["image"].meta)  # the label map gets it
        for key in self.key_iterator(item):
            logits, views = split_view(plain(item[key])) if self.with_view else (plain(item[key]), None)
            frames = logits if logits.ndim == 4 else logits[None]
            num_groups, rest = divmod(frames.shape[1] - self.goes_itself, len(STRUCTURES))
            if rest or num_groups < 1:
                raise ValueError(
                    f"postprocessing.py: {len(STRUCTURES)} class indices for logits of {frames.shape[1] - self.goes_itself} structures"
                )
            maps, evidence = map(list, zip(*(self._restore(key, frame, geometry) for frame in frames)))
            if views is not None:
                of_frames = views.reshape(-1, NUM_VIEW_LOGITS).float().cpu().numpy()
                evidence = [{**e, "view": view_evidence(v)} for e, v in zip(evidence, of_frames, strict=True)]
            item[EVIDENCE_KEY] = evidence
            for name in list(maps[0]):
                item[name] = _stored(_stacked([of_frame.pop(name) for of_frame in maps]), meta)
        return item

    def _restore(
        self, key: Hashable, logits: Tensor, geometry: LetterboxGeometry
    ) -> tuple[dict[Hashable, Tensor], dict[str, Any]]:
        """Return maps (H, W) by key, and evidence, for one frame's logits (E * S, N, N)."""
        itself, taught = _without_padding(logits, geometry).float().tensor_split([int(self.goes_itself)])
        inner = taught.unflatten(0, (-1, len(STRUCTURES)))  # (E, S, h, w)
        probability = inner.sigmoid()
        size = geometry.native_height, geometry.native_width
        maps: dict[Hashable, Tensor] = {}
        if len(inner) > 1:
            native = resize(mean_logits(inner), *size)
            shown = slice(None) if self.understood is None else [STRUCTURES.index(self.understood.structure)]
            largest = probability[:, shown].std(dim=0, correction=0).amax(dim=0, keepdim=True)
            maps[SPREAD_KEY] = resize(largest, *size)[0].clamp(0, 0.5)
        else:
            native = resize(inner[0], *size)
        label_map, removed, filled = self._clean(native, STRUCTURES)
        maps[key] = label_map
        rows, columns = (
            _centres(geometry.native_height, inner.shape[2]),
            _centres(geometry.native_width, inner.shape[3]),
        )
        at_centres = np.ix_(rows, columns)
        small = label_map.cpu().numpy()[at_centres]
        indices, names = [s.class_index for s in STRUCTURES], [s.name for s in STRUCTURES]
        found = segmentation_evidence(probability.cpu().numpy(), small, indices, names, removed, filled)
        if self.understood is not None:
            structure = self.understood.structure
            said: dict[str, Any] = {
                "text": self.understood.prompt,
                "structure": structure.name,
                "reading": self.understood.reading,
            }
            mask = label_map * (label_map == structure.class_index)
            if self.goes_itself:
                mask, _, _ = self._clean(resize(itself, *size), [structure])
                said["overlaps"] = mask_overlaps(mask.cpu().numpy()[at_centres] != BACKGROUND_INDEX, small)
            maps |= {key: mask, JUDGED_KEY: label_map}
            found[FREE_PROMPT] = said
        return maps, found

    def _clean(self, logits: Tensor, structures: Sequence[Structure]) -> tuple[Tensor, list[float], list[float]]:
        """Make a label map (H, W) of logits (S, H, W), remove strays and fill holes; also return the removed and added shares."""
        indices = [s.class_index for s in structures]
        label_map = logits_to_label_map(logits, indices, self.threshold, together=self.fill_holes)
        before = label_map.cpu().numpy()
        rows, columns = np.flatnonzero(before.any(axis=1)), np.flatnonzero(before.any(axis=0))
        if not rows.size or not (self.keep_largest or self.fill_holes):
            return label_map, [0.0] * len(indices), [0.0] * len(indices)
        part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))  # the labelled part: less to look at
        kept = remove_strays(before[part], indices) if self.keep_largest else before[part]
        filled = kept
        if self.fill_holes:
            filled = fill_enclosed(kept, logits[:, part[0], part[1]].cpu().numpy(), indices)
        sizes = [[int(np.count_nonzero(m == i)) for i in indices] for m in (before[part], kept, filled)]
        removed = [(b - k) / max(b, 1) for b, k in zip(sizes[0], sizes[1])]
        added = [(f - k) / max(f, 1) for k, f in zip(sizes[1], sizes[2])]
        whole = before.copy()
        whole[part] = filled
        return torch.from_numpy(whole).to(label_map.device), removed, added


class AssessDoubtd(Transform):
    """Add `doubt`, a `DoubtAssessor`'s verdict on `RestoreLabelMapd`'s label map; also within `result`, for MONAI Label's answer.

    The label map of all structures is judged even if only one of them was asked for: the same image gets the same verdict.

    Args:
        assessor: the assessor that judges the label map.
        key: key of the label map.
    """

    def __init__(self, assessor: DoubtAssessor, key: str = "pred") -> None:
        self.assessor, self.key = assessor, key

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        item = dict(data)
        label_map = shown_frames(item.pop(JUDGED_KEY, item[self.key])).cpu().numpy()
        spacing = [float(s) for s in item["spacing_mm"]]
        known = spacing if item[CALIBRATED_KEY] else None  # else nothing is judged in mm
        doubt = self.assessor(label_map, item[EVIDENCE_KEY], known, spacing)
        return {**item, DOUBT_KEY: doubt, RESULT_KEY: {**item.get(RESULT_KEY, {}), DOUBT_KEY: doubt}}


class LogitsToMasksd(Transform):
    """Add `pred_masks` (S, N, N) of the logits `pred` (S, N, N), by the same arbitration as the label map.

    The logits stay, for the validation loss.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        label_map = logits_to_label_map(data["pred"], threshold=self.threshold)
        return {**data, "pred_masks": masks_of_label_map(label_map[None])}


def display_order(label_map: Tensor) -> Tensor:
    """Turn `RestoreLabelMapd`'s label map or spread, (1, W, H, 1), into (H, W) as on the screen; a clip, (1, W, H, T), into (T, H, W)."""
    frames = shown_frames(label_map).contiguous()
    return frames[0] if len(frames) == 1 else frames


def shown_frames(label_map: Tensor) -> Tensor:
    """Turn `RestoreLabelMapd`'s label map into frames (T, H, W) as on the screen, whatever the stored order of its file."""
    meta = label_map.meta if isinstance(label_map, MetaTensor) else {}
    return to_display(plain(label_map)[0], stored_order(meta))


# ---- helpers


def _without_padding(logits: Tensor, geometry: LetterboxGeometry) -> Tensor:
    """Cut (..., N, N) to (..., h, w), the part that the image takes."""
    g = geometry
    return logits[..., g.top : g.top + g.inner_height, g.left : g.left + g.inner_width]


def _stacked(frames: list[Tensor]) -> Tensor:
    """Stack frames (H, W) to (T, H, W); each is freed once it is copied, since those of a long clip are gigabytes."""
    whole = frames[0].new_empty(len(frames), *frames[0].shape)
    for number, frame in enumerate(frames):
        whole[number] = frame
        frames[number] = whole[number]
    return whole


def _stored(frames: Tensor, meta: Mapping[str, Any]) -> MetaTensor:
    """Put (T, H, W) into the file's order, usually (1, W, H, T), with meta data."""
    return MetaTensor(to_stored(frames, stored_order(meta))[None].contiguous(), meta=dict(meta))


def _centres(native: int, inner: int) -> NDArray[np.int64]:
    """Return the native index at the centre of each of `inner` pixels over the same length."""
    return ((np.arange(inner) + 0.5) * native / inner).astype(np.int64)
