"""Export segmenters for use without this package, traced for one image size and any number of images and prompts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Optional

import torch
from torch import Tensor, nn

from .prompted import PromptedSegmenter
from .text import CONTEXT_LENGTH


class ExportedSegmenter(nn.Module):
    """Wrap a traced segmenter so that `torch.jit.script` accepts it and it can load other weights of the same architecture.

    This lets MONAI's own `ckpt_export` export it: a config names it as a network and the command loads the weights afterwards.

    B: batch, S: prompts of an image, L: context length, N: side of the square.

    Args:
        network: a segmenter; the traced segmenter takes over its layers.
        image_size: N; other sizes are refused by the exported program.
    """

    def __init__(self, network: nn.Module, image_size: int) -> None:
        super().__init__()
        if not isinstance(network, PromptedSegmenter):
            raise ValueError(
                f"export.py: expected a segmenter (CLIPSeg or CRIS), got {type(network).__name__}; other networks cannot be exported"
            )
        self.image_size = int(image_size)
        self.context_length = min(CONTEXT_LENGTH, network_context_length(network))
        # tracing makes every other buffer a part of the state dict too
        self._weight_names = frozenset(network.state_dict())
        self.network = trace_segmenter(network, self.image_size, self.context_length)
        ids = network.default_input_ids
        padded = nn.functional.pad(ids, (0, self.context_length - ids.shape[-1]))
        self.register_buffer("default_input_ids", padded, persistent=False)

    # TorchScript reads this annotation: it does not know `Tensor | None`
    def forward(self, image: Tensor, input_ids: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        """Return logits (B, S, N, N).

        Args:
            image: (B, 3, N, N), normalised.
            input_ids: (B, S, L) int64, padded behind the end token; None: the three structures' P1 prompts.
        """
        if image.shape[-1] != self.image_size or image.shape[-2] != self.image_size:
            raise ValueError(
                "the exported segmenter takes images of another size; bring them to the size it was exported for"
            )
        if input_ids is None:
            input_ids = self.default_input_ids.expand(image.shape[0], -1, -1)
        return self.network(image, input_ids.to(image.device))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights of the segmenter itself, as in a bundle's model.pt."""
        tables = {key: value for key, value in self.network.state_dict().items() if key not in self._weight_names}
        return self.network.load_state_dict({**tables, **state_dict}, strict=strict, assign=assign)


def network_context_length(network: nn.Module) -> int:
    """Return the longest prompt that a segmenter takes, in tokens."""
    backbone = getattr(network, "backbone", None)
    return int(network.context_length if backbone is None else len(backbone.positional_embedding))  # type: ignore[arg-type]


def example_inputs(image_size: int, context_length: int) -> tuple[Tensor, Tensor]:
    """Make two images with three prompts each for tracing; a tracer would take a size of 1 for fixed."""
    input_ids = torch.zeros(2, 3, context_length, dtype=torch.int64)
    input_ids[..., :3] = torch.tensor([49406, 1823, 49407])
    return torch.zeros(2, 3, image_size, image_size), input_ids


@contextmanager
def quiet_recording() -> Iterator[None]:
    """Silence warnings that do not matter while tracing.

    Image sizes become fixed on purpose; TorchScript is deprecated; and transformers warns of a property that only the recorder
    reads, because it reads all of them.
    """
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def trace_segmenter(network: nn.Module, image_size: int, context_length: int) -> torch.jit.ScriptModule:
    """Trace `network` to TorchScript: (image (B, 3, N, N), input_ids (B, S, L)) -> logits (B, S, N, N), for any B and S.

    Args:
        network: a segmenter; it is put into evaluation mode.
        image_size: N, a multiple of 32.
        context_length: L.
    """
    network.eval()
    with torch.no_grad(), quiet_recording():
        return torch.jit.trace(network, example_inputs(image_size, context_length), check_trace=False)
