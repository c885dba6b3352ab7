"""Choose the floating-point type that a device computes in: float32 where a processor would only imitate 16 bits."""

from __future__ import annotations

import functools
import logging

import torch

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types by the names that configs write."""
MIXED_DTYPES = ("bfloat16", "float16")
"""Names of the types of mixed precision."""


def dtype_named(name: str, option: str = "dtype") -> torch.dtype:
    """Return the type that an option names, or raise ValueError, which says what names there are."""
    if name not in DTYPES:
        raise ValueError(f"{option} must be {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def mixed_dtype_named(name: str | None, option: str = "autocast_dtype") -> torch.dtype | None:
    """Return the type of mixed precision that an option names, None for none, or raise ValueError, which says what names there are."""
    if name is not None and name not in MIXED_DTYPES:
        raise ValueError(f"{option} must be {', '.join(MIXED_DTYPES)} or null, got {name!r}")
    return None if name is None else DTYPES[name]


def computable_dtype(device: torch.device | str, dtype: torch.dtype) -> torch.dtype:
    """Return `dtype`, or float32 for a CPU that has no instructions for it.

    There a convolution in 16 bits takes 7 to 40 times as long as in float32 (oneDNN 3.12 on a Zen 3, which ends at AVX2), so
    that a training of an hour would take ten. The numbers are those of float32 then; a log line says so once.

    Args:
        device: device that computes. GPUs are not asked.
        dtype: type that the settings want.
    """
    if torch.device(device).type != "cpu" or dtype == torch.float32 or cpu_computes_in(dtype):
        return dtype
    _say_once(str(dtype).removeprefix("torch."))
    return torch.float32


def autocast(device: torch.device | str, dtype: torch.dtype | None) -> torch.autocast:
    """Return a context that computes in mixed precision, if `mixed_dtype` says so."""
    dtype = mixed_dtype(device, dtype)
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None)


def mixed_dtype(device: torch.device | str, dtype: torch.dtype | None) -> torch.dtype | None:
    """Return the 16-bit type of mixed precision on a device; None where it is not wanted or the device would only imitate it."""
    dtype = None if dtype is None else computable_dtype(device, dtype)
    return None if dtype == torch.float32 else dtype


def cpu_computes_in(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN, which computes for torch on CPUs, has code for a 16-bit type on this processor."""
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    is_supported = getattr(torch.ops.mkldnn, name, None)  # None: a torch without oneDNN
    return bool(is_supported is not None and is_supported())


@functools.cache
def _say_once(name: str) -> None:
    logger.warning(
        f"this processor has no instructions for {name}, which it could only imitate, many times slower: float32 is used"
    )
