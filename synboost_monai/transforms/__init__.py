"""Transform images and label maps: `array` holds the logic, `dictionary` the versions for MONAI's pipelines (names ending in d)."""

from synboost_monai.letterbox import LetterboxGeometry, letterbox_geometry
from synboost_monai.transforms.array import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    letterbox_image,
    letterbox_label_map,
)
from synboost_monai.transforms.augmentation import RandUltrasound, RandUltrasoundd
from synboost_monai.transforms.dictionary import (
    CheckLabelMapd,
    DropAttributesd,
    EchoInMemoryd,
    Letterboxd,
    LoadEchod,
    MasksOfLabelMapd,
    NormaliseEchod,
    ViewPhaseClassd,
)
from synboost_monai.transforms.files import check_label_map, checked_items, load_echo, write_label_map
from synboost_monai.transforms.postprocessing import (
    AssessDoubtd,
    LogitsToMasksd,
    RestoreLabelMapd,
    display_order,
    logits_to_label_map,
    restore_logits,
)
from synboost_monai.transforms.prompt_tokens import PromptTokensd, RandPromptTokensd, TileMasksd
from synboost_monai.transforms.ultrasound_dicom import LoadUltrasoundDicomd, RestoreFullFramed

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AssessDoubtd",
    "CheckLabelMapd",
    "DropAttributesd",
    "EchoInMemoryd",
    "LetterboxGeometry",
    "Letterboxd",
    "LoadEchod",
    "LoadUltrasoundDicomd",
    "LogitsToMasksd",
    "MasksOfLabelMapd",
    "NormaliseEchod",
    "PromptTokensd",
    "RandPromptTokensd",
    "RandUltrasound",
    "RandUltrasoundd",
    "RestoreFullFramed",
    "RestoreLabelMapd",
    "TileMasksd",
    "ViewPhaseClassd",
    "check_label_map",
    "checked_items",
    "display_order",
    "letterbox_geometry",
    "letterbox_image",
    "letterbox_label_map",
    "load_echo",
    "logits_to_label_map",
    "restore_logits",
    "write_label_map",
]
