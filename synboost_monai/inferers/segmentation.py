"""Run prompted segmentation as a MONAI Inferer, which keeps the prompt because MONAI Label passes only images.

B: batch, S: prompts of an image, L: tokens of a prompt, T: frames of a clip, N: side of the network's square.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from synboost_monai.networks.precision import autocast, mixed_dtype, mixed_dtype_named
from synboost_monai.networks.text import PromptTable
from synboost_monai.prompts import PromptTokenizer
from synboost_monai.prompts.understanding import understand_if_any
from synboost_monai.transforms.array import plain
from synboost_monai.transforms.prompt_tokens import PROMPT_IDS_KEY

logger = logging.getLogger(__name__)


class PromptedSegmentationInferer(Inferer):
    """Run a segmenter on images and prompts.

    The prompts are the batch's `input_ids`; else those in the images' meta data, where `PromptTokensd` leaves them for callers that
    pass only images, such as MONAI Label; else the network's default prompts, one for each of the three structures. A free `prompt`
    does not replace these, since the masks of all three structures are needed to judge the one that it names (`RestoreLabelMapd`).
    Only if the network is given the prompt itself (`Understood.goes_itself`), it is put in front of them.
    If the network has a head for the view, its four logits can be appended to those of the masks (`networks.view_head.join_view`);
    the image is encoded once for both.
    A prompt that was seen before is not encoded again while the text encoder's weights do not change; during training only if the
    text encoder is frozen.

    Args:
        prompt: words that name one structure; "" for the structures of the project.
        autocast_dtype: "bfloat16" computes in mixed precision, on CPUs too; None: in the type of the weights. Logits are always float32.
        channels_last: memory layout of the images; convolutions in mixed precision are faster with it.
        padding_id: as in `PromptTokenizer`.
        images_at_once: number of images, or frames of a clip, that go through the network together; None: the whole batch.
        cache_text: False encodes prompts anew each time.
        free_words: whether the text encoder knows more words than those of the paper's prompts.
        with_view: return the logits of the network's view head too, if it has one.
    Raises:
        ValueError: if the prompt does not name one structure that the networks were taught (`understand`), or an option is wrong.
    """

    def __init__(
        self,
        prompt: str = "",
        autocast_dtype: str | None = None,
        channels_last: bool = False,
        padding_id: int = 0,
        images_at_once: int | None = None,
        cache_text: bool = True,
        free_words: bool = False,
        with_view: bool = False,
    ) -> None:
        super().__init__()
        if images_at_once is not None and images_at_once < 1:
            raise ValueError(f"segmentation.py: images_at_once must be at least 1 or null, got {images_at_once}")
        self.autocast_dtype = mixed_dtype_named(autocast_dtype)
        self.channels_last = channels_last
        self.images_at_once = images_at_once
        self.cache_text = cache_text
        self.with_view = with_view
        understood = understand_if_any(prompt)
        self.goes_itself = understood is not None and understood.goes_itself(free_words)
        if understood is not None:
            logger.info(f"prompt {understood.prompt!r}: {understood.reading}")
            self._prompt_ids = PromptTokenizer(padding_id=padding_id)([understood.prompt])  # (1, L)
        self._tables: dict[int, PromptTable] = {}

    def __call__(
        self,
        inputs: Tensor | Sequence[Tensor],
        network: nn.Module,
        input_ids: Tensor | None = None,
        *args: Any,
        teaches_view: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """Return the logits of a batch.

        Args:
            inputs: images (B, 3, N, N), normalised; or clips (B, T, 3, N, N); or the features of images, as `encode_image` of the
                segmenters returns them.
            network: a segmenter, which may be wrapped in DistributedDataParallel.
            input_ids: prompts of each image or clip, (B, S, L), best left on the CPU; None as described above.
            teaches_view: in training, whether the batch contains the views of its images.
        Returns:
            (B, S, N, N), for clips (B, T, S, N, N); float32. A prompt that is given to the network itself adds one plane in front, the
            view four at the end.
        Raises:
            ValueError: if a network with a head for the view, which is not frozen, is trained on images whose views the batch does not
                contain.
        """
        features: list[Tensor] = [plain(t) for t in inputs] if not isinstance(inputs, Tensor) else [plain(inputs)]
        clip_shape = features[0].shape[:2] if isinstance(inputs, Tensor) and inputs.ndim == 5 else None
        batch_size = len(features[0])
        if input_ids is None and isinstance(inputs, MetaTensor):
            input_ids = _prompts_of(inputs)
        if input_ids is not None:
            input_ids = plain(input_ids)
        if self.goes_itself:
            taught = (
                _module(network).default_input_ids.cpu().expand(batch_size, -1, -1) if input_ids is None else input_ids
            )
            input_ids = torch.cat([self._prompt_ids.to(taught.device).expand(batch_size, 1, -1), taught], dim=1)
        if clip_shape is not None:
            features = [features[0].flatten(0, 1)]
            input_ids = None if input_ids is None else input_ids.repeat_interleave(clip_shape[1], dim=0)
        known = {"teaches_view": True} if teaches_view else {}
        at_once = self.images_at_once or len(features[0])
        joined: Tensor | None = None
        for start in range(0, len(features[0]), at_once):
            part = [f[start : start + at_once] for f in features]
            ids = None if input_ids is None else input_ids[start : start + at_once]
            logits = self._logits(part[0] if isinstance(inputs, Tensor) else tuple(part), network, ids, **known)
            if joined is None:  # for a long clip the logits take the most memory: never hold them twice
                joined = (
                    logits if at_once >= len(features[0]) else logits.new_empty(len(features[0]), *logits.shape[1:])
                )
            joined[start : start + at_once] = logits
        assert joined is not None
        return joined if clip_shape is None else joined.unflatten(0, clip_shape)

    def _logits(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        network: nn.Module,
        input_ids: Tensor | None,
        teaches_view: bool = False,
    ) -> Tensor:
        """Return the logits of images or features (B, ...)."""
        segmenter = _module(network)
        head: nn.Module | None = getattr(segmenter, "view_head", None)
        has_head = head is not None
        is_taught = head is not None and any(p.requires_grad for p in head.parameters())
        if is_taught and segmenter.training and not teaches_view:
            raise ValueError(
                "segmentation.py: the network has a head for the view (has_view_head), but the training data says no view; set "
                "has_view_head to false, or train with train_simulated.yaml"
            )
        extra = {"with_view": True} if has_head and (teaches_view or self.with_view) else {}
        first = inputs if isinstance(inputs, Tensor) else inputs[0]
        parameter = next(segmenter.parameters(), None)
        dtype = mixed_dtype(first.device, self.autocast_dtype)
        if dtype is None and parameter is not None and first.dtype != parameter.dtype:
            inputs = (
                inputs.to(parameter.dtype)
                if isinstance(inputs, Tensor)
                else tuple(f.to(parameter.dtype) for f in inputs)
            )
        if self.channels_last and isinstance(inputs, Tensor):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with autocast(first.device, dtype):
            text = self._known_text(segmenter, first, input_ids)
            logits = network(inputs, input_ids, **extra) if text is None else network(inputs, None, text, **extra)
        return logits.float()

    def _known_text(self, segmenter: nn.Module, first: Tensor, input_ids: Tensor | None) -> tuple[Tensor, ...] | None:
        """Return the text features of the prompts, each encoded once; None if the network has to encode them itself."""
        if not self.cache_text or not hasattr(segmenter, "join_prompts"):
            return None
        if input_ids is None:
            input_ids = segmenter.default_input_ids.cpu().expand(len(first), -1, -1)
        if id(segmenter) not in self._tables:
            self._tables[id(segmenter)] = PromptTable()
        return self._tables[id(segmenter)](segmenter, input_ids.flatten(0, 1))


class PreparePromptedBatch:
    """Use as MONAI's `prepare_batch` for segmenters: (images or features, masks or None, (), {"input_ids": prompts}).

    Images and masks go to the device; prompts stay on the CPU, where repeated ones are found without waiting for the device. If the
    batch contains the views of its images, the target is what `MasksAndViewLoss` takes, and the inferer gets `teaches_view`.
    """

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Tensor | dict[str, Tensor] | None, tuple[()], dict[str, Any]]:
        def moved(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return tuple(moved(part) for part in value)
            return value.to(device=device, non_blocking=non_blocking, **kwargs) if isinstance(value, Tensor) else None

        known: dict[str, Any] = {k: batchdata[k] for k in ("input_ids",) if isinstance(batchdata.get(k), Tensor)}
        target = moved(batchdata.get("label"))
        if "view_class" in batchdata:
            target = {"masks": target, **{key: moved(batchdata[key]) for key in ("view_class", "systole")}}
            known["teaches_view"] = True
        return moved(batchdata["image"]), target, (), known


def _prompts_of(images: MetaTensor) -> Tensor | None:
    """Return the prompts (B, S, L) in the meta data of images (B, ...), of a collated batch or of one image."""
    found = images.meta.get(PROMPT_IDS_KEY)
    if not isinstance(found, Tensor):
        return None
    return found if found.ndim == 3 else found.expand(len(images), *found.shape)


def _module(network: nn.Module) -> Any:
    """Return the segmenter itself, unwrapped if necessary."""
    return network.module if isinstance(network, DistributedDataParallel) else network
