"""Handle token ids for both segmenters: the default prompts, and encoding each distinct prompt once.

B: batch, S: prompts of one image, N = B * S, L: tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from synboost_monai.structures import STRUCTURES

VOCABULARY_SIZE = 49408
"""Tokens of CLIP's byte pair encoding; the last two mark start (49406) and end (49407) of a text."""
CONTEXT_LENGTH = 77
"""Tokens of the longest prompt that CLIP was trained with."""
DEFAULT_INPUT_IDS = tuple(structure.token_ids for structure in STRUCTURES)
"""Token ids of the structures' P1 prompts, first phrasing; a segmenter uses them when it is given no prompt."""


def default_input_ids() -> Tensor:
    """Return `DEFAULT_INPUT_IDS` as one tensor, (1, S, L), int64, padded with 0."""
    length = max(len(ids) for ids in DEFAULT_INPUT_IDS)
    return torch.tensor([[list(ids) + [0] * (length - len(ids)) for ids in DEFAULT_INPUT_IDS]])


def is_recorded() -> bool:
    """Return whether the code is being traced, compiled or exported: shortcuts for this batch's ids must not become part of the program."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()


def distinct_prompts(input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Find the distinct rows of (N, L) token ids and, for each of the N rows, which of them it equals.

    This is done only where it costs nothing: for ids on an accelerator the host would have to wait for the answer, and in an exported
    network the answer would be fixed, so all rows are returned with `None`; so is a single row. Keep the ids on the CPU even for networks
    on an accelerator.
    """
    if input_ids.device.type != "cpu" or is_recorded() or len(input_ids) == 1:
        return input_ids, None
    return torch.unique(input_ids, dim=0, return_inverse=True)


def trim_padding(input_ids: Tensor) -> Tensor:
    """Remove trailing columns that are 0 (padding) in every row of (N, L) token ids; only on the CPU, as `distinct_prompts`."""
    if input_ids.device.type != "cpu" or is_recorded():
        return input_ids
    used = (input_ids != 0).any(dim=0).nonzero()
    return input_ids[:, : int(used[-1]) + 1] if len(used) else input_ids[:, :1]


def trim_to_end(input_ids: Tensor) -> Tensor:
    """Remove columns of (N, L) token ids behind the last of the rows' first end tokens (the highest id), whatever the padding.

    Exact for what is read at the end token of a causal transformer. Only on the CPU, as `distinct_prompts`.
    """
    if input_ids.device.type != "cpu" or is_recorded():
        return input_ids
    return input_ids[:, : int(input_ids.argmax(dim=-1).max()) + 1]


def check_image(image: Tensor) -> None:
    """Refuse image sizes that would otherwise fail deep inside."""
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"segmenter: expected images (B, 3, H, W), got {tuple(image.shape)}")
    height, width = image.shape[-2:]
    if height % 32 or width % 32 or not height or not width:
        raise ValueError(f"segmenter: image is {height} x {width}; height and width must be multiples of 32")


def check_input_ids(input_ids: Tensor, num_images: int) -> None:
    """Refuse shapes of token ids that would otherwise fail deep inside, or not at all."""
    if input_ids.ndim != 3 or input_ids.shape[0] != num_images:
        raise ValueError(
            f"segmenter: input_ids must be (B, S, L) with B = {num_images} images, got {tuple(input_ids.shape)}"
        )


def check_length(input_ids: Tensor, context_length: int) -> None:
    """Refuse (N, L) token ids that are longer than the text encoder was made for; nothing is cut off in silence."""
    if input_ids.shape[1] > context_length:
        raise ValueError(
            f"segmenter: a prompt has {input_ids.shape[1]} tokens with start and end, but the network takes {context_length}; "
            "shorten the prompt or its padding, or lower prompt_level"
        )


class PromptedNetwork(Protocol):
    """List what `PromptTable` needs of a segmenter."""

    def text_encoder_parameters(self) -> list[Tensor]:
        """Return all parameters that text features depend on."""

    def encode_prompts(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Compute text features of (N, L) token ids."""

    def split_prompts(self, text: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        """Split the text features of N prompts into those of each."""

    def join_prompts(self, texts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Join the text features of single prompts into those of all N."""


class Memo:
    """Remember results computed from parameters until the parameters change; nothing is remembered where a gradient is wanted.

    torch counts the changes of a tensor in place (optimisers, `load_state_dict`, averages); a move to another type or device changes
    its address. Remembered results carry no gradient and can be used in training as well as in inference mode.

    Args:
        max_entries: number of results; once it is exceeded, everything is forgotten.
    """

    def __init__(self, max_entries: int = 2048) -> None:
        self.max_entries = max_entries
        self._state: tuple[Any, ...] = ()
        self._known: dict[Hashable, Any] = {}

    def is_usable(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether results may be remembered now; forget them if the parameters have changed."""
        if is_recorded():
            return False
        if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            return False
        if any(p.is_inference() for p in parameters):  # these do not count their changes
            return False
        state = tuple((p.data_ptr(), p._version, p.dtype) for p in parameters)
        if state != self._state:
            self._state, self._known = state, {}
        return True

    def get(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Iterable[Any]]) -> list[Any]:
        """Return the result for each key; `compute` is called once, with the first place of each key that is not known."""
        missing = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self._known}
        known = self._known
        if missing:
            if len(known) + len(missing) > self.max_entries:
                known = {key: known[key] for key in keys if key in known}
            places = sorted(missing.values())
            with torch.inference_mode(False), torch.no_grad():
                results = list(compute(places))
            known.update(zip((keys[place] for place in places), results))
            self._known = known
        return [known[key] for key in keys]

    def one(self, parameters: Sequence[Tensor], key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return the result for one key; it is computed anew where nothing may be remembered."""
        if not self.is_usable(parameters):
            return compute()
        return self.get([key], lambda _: [compute()])[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> Memo:
        """Return an empty memo: a copy of a network has its own parameters."""
        return Memo(self.max_entries)

    def __getstate__(self) -> dict[str, Any]:
        return {"max_entries": self.max_entries, "_state": (), "_known": {}}


class PromptTable:
    """Keep the text features of prompts seen so far: prompts are few, and a frozen text encoder always gives the same features."""

    def __init__(self, max_entries: int = 2048) -> None:
        self._memo = Memo(max_entries)

    def __call__(self, network: PromptedNetwork, input_ids: Tensor) -> tuple[Tensor, ...] | None:
        """Return text features of (N, L) token ids for `network`; None while its text encoder learns, or if ids are on an accelerator."""
        if input_ids.device.type != "cpu" or not self._memo.is_usable(network.text_encoder_parameters()):
            return None
        rows = [tuple(row) for row in input_ids.tolist()]
        return network.join_prompts(
            self._memo.get(rows, lambda places: network.split_prompts(network.encode_prompts(input_ids[places])))
        )
