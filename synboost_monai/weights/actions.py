"""Do the actions of `synboost weights`: list, get and convert."""

from __future__ import annotations

from synboost_monai.weights.convert import convert_weights
from synboost_monai.weights.fetch import get_weights
from synboost_monai.weights.options import ConvertOptions
from synboost_monai.weights.table import weights_table

ACTIONS = ("list", "get", "convert")
"""Actions of `synboost weights`."""


def run_action(
    action: str,
    source: str | None = None,
    output: str | None = None,
    *,
    sha256: str | None = None,
    options: ConvertOptions,
) -> str:
    """Do an action of `synboost weights`, and return the text to print.

    Args:
        action: `list`, `get` (source: name; output: file or folder) or `convert` (source: checkpoint; output: model.pt).
        sha256: for `get`, see `get_weights`.
        options: for `convert`.
    Raises:
        ValueError, FileNotFoundError: in one line, for mistakes of the user.
    """
    if action not in ACTIONS:
        raise ValueError(f"expected {', '.join(ACTIONS)}, got {action!r}")
    if action == "list":
        if source is not None:
            raise ValueError(f"list takes no further word, got {source!r}")
        return weights_table()
    if source is None or output is None:
        words = "NAME OUT" if action == "get" else "SOURCE OUT"
        raise ValueError(f"{action} needs two words, {words}; see `synboost weights --help`")
    if action == "get":
        return f"weights: {get_weights(source, output, sha256)}"
    return convert_weights(source, output, options)
