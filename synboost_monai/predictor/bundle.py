"""Open a bundle's inference config with its weights: the first step of everything that uses a network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synboost_monai.bundle_run import (
    bundle_weights,
    check_overrides,
    config_files,
    config_parser,
    quiet_warnings,
    setting_of,
)
from synboost_monai.errors import user_errors_of

if TYPE_CHECKING:
    from monai.bundle import ConfigParser
    from torch import nn


@dataclass(frozen=True)
class OpenBundle:
    """Hold a bundle's inference config with its weights and the user's keys."""

    name: str
    checkpoint_path: Path
    parser: ConfigParser

    def setting(self, key: str) -> Any:
        """Return a part or value of the config; for a fact of the model, its value in model.json.

        Raises:
            ValueError, FileNotFoundError: if weights and settings do not belong together.
        """
        return setting_of(self.parser, key)

    def network_as_trained(self) -> nn.Module:
        """Return the network on the CPU with its weights as trained, to be written to a file: not laid out for inference.

        Raises:
            ValueError: if they do not fit.
        """
        from synboost_monai.networks import load_weights

        return load_weights(self.setting("network_def"), self.checkpoint_path).requires_grad_(False).eval()


def open_bundle(
    bundle: str | os.PathLike[str],
    checkpoint_path: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    flag: str = "--checkpoint_path",
    **fixed: Any,
) -> OpenBundle:
    """Open a bundle's inference config, without making any of its parts yet.

    Args:
        bundle: name or folder.
        checkpoint_path: weights; None: those of the bundle.
        overrides: keys of inference.yaml -> values, from outside.
        flag: command-line flag that names the weights, for errors.
        fixed: keys that the caller decides.
    Raises:
        FileNotFoundError: if the bundle or its weights do not exist; the message says how to get weights.
        ValueError: if a key does not exist, or its value has the wrong type.
    """
    quiet_warnings()
    files = config_files(bundle, "inference")
    root = files[0].parents[1]
    values = check_overrides(files, overrides or {})
    path = bundle_weights(root, checkpoint_path or values.get("checkpoint_path"), flag)
    parser = config_parser(files, {**values, **fixed, "bundle_root": str(root), "checkpoint_path": str(path)})
    return OpenBundle(root.name, path, parser)


def unwrapped(transform: Any, item: dict[Any, Any]) -> dict[Any, Any]:
    """Apply a transform to an item, and raise the user's mistake itself where MONAI wraps it in another error."""
    with user_errors_of(RuntimeError):
        changed: dict[Any, Any] = transform(item)
    return changed
