"""Run one denoising evaluation as generated code: torch.compile with static shapes, and CUDA graphs on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch._dynamo
from torch import Tensor

from synboost_monai.networks.semantic_diffusion_unet import AnyModulation, SemanticDiffusionUNet
from synboost_monai.networks.spade import TableModulation


class CompiledDenoiser:
    """Call `decode(encode(x, t), modulations)` of one network through torch.compile.

    A CUDA graph replays fixed memory addresses. The modulations are by far the largest input (1 GB per image at 256 px), so they get
    buffers whose addresses stay the same; the modulations of the next label maps are copied there once per group of images, and only
    x and t are passed in at each step. Tables get room for as many rows as the longest so far, rounded up to a power of two.

    Compiling takes minutes, at the first call and whenever a shape changes: use one size and one number of images at once.

    Args:
        network: network in eval mode.
        backend: backend of torch.compile; None: its default, with CUDA graphs on a GPU.
    """

    def __init__(self, network: SemanticDiffusionUNet, backend: str | None = None) -> None:
        self.network = network
        self._buffers: list[AnyModulation] = []
        is_cuda = next(network.parameters()).is_cuda
        options = {"backend": backend} if backend else {"mode": "reduce-overhead"} if is_cuda else {}
        self._evaluate = torch.compile(self._plain, fullgraph=True, dynamic=False, **options)  # type: ignore[call-overload]

    def with_modulations(
        self, modulations: Sequence[AnyModulation]
    ) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """Return a function (x_t, t (1,), classes) -> network output for some label maps.

        Use one such function at a time, as they share the buffers.

        Args:
            modulations: result of `condition` or `join_modulations`.
        """
        if not _fit(self._buffers, modulations):
            self._buffers = [_buffer(modulation) for modulation in modulations]
        for buffer, modulation in zip(self._buffers, modulations):
            for kept, new in zip(buffer, modulation):
                kept[: len(new)].copy_(new)

        def evaluate(x: Tensor, timesteps: Tensor, class_labels: Tensor | None) -> Tensor:
            # a CUDA graph's output is overwritten by its next replay
            torch.compiler.cudagraph_mark_step_begin()
            return self._evaluate(x, timesteps, class_labels, self._buffers).clone()

        return evaluate

    def _plain(
        self, x: Tensor, timesteps: Tensor, class_labels: Tensor | None, modulations: list[AnyModulation]
    ) -> Tensor:
        return self.network.decode(self.network.encode(x, timesteps, class_labels), modulations)


def _fit(buffers: Sequence[AnyModulation], modulations: Sequence[AnyModulation]) -> bool:
    """Return whether modulations can be copied into the buffers."""
    if len(buffers) != len(modulations):
        return False
    for buffer, modulation in zip(buffers, modulations):
        if type(buffer) is not type(modulation):
            return False
        for kept, new in zip(buffer, modulation):
            is_table = isinstance(modulation, TableModulation) and new.ndim == 2
            if kept.dtype != new.dtype or kept.shape[1:] != new.shape[1:] or len(kept) < len(new):
                return False
            if len(kept) != len(new) and not is_table:
                return False
    return True


def _buffer(modulation: AnyModulation) -> AnyModulation:
    """Allocate memory for a modulation of this shape, at an address that does not change."""
    buffers = []
    for tensor in modulation:
        num_rows = len(tensor)
        if isinstance(modulation, TableModulation) and tensor.ndim == 2:
            num_rows = 1 << (num_rows - 1).bit_length()
        buffer = torch.empty_like(tensor) if num_rows == len(tensor) else tensor.new_zeros(num_rows, *tensor.shape[1:])
        torch._dynamo.mark_static_address(buffer)
        buffers.append(buffer)
    return type(modulation)(*buffers)
