#!/usr/bin/env python
"""Install packages into the environment of this Python, with the words of `pip install`.

    .venv/bin/python scripts/install.py -c constraints.txt torch

uv does it in seconds where pip takes minutes, and is told where pip's settings (files and PIP_ variables) say that packages come from.
pip does it where uv cannot be had, fails, or would not know one of these settings. It needs only the standard library.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence

VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "compile": "UV_COMPILE_BYTECODE",
    "no-compile": "UV_COMPILE_BYTECODE",  # pip reads a value of it as one of `compile`
}
"""Setting of pip -> variable that tells uv the same."""
WITHOUT_EFFECT = {
    *("cache-dir", "default-timeout", "disable-pip-version-check", "no-cache-dir", "no-color", "no-input"),
    *("progress-bar", "quiet", "require-virtualenv", "retries", "root-user-action", "timeout", "verbose"),
}
"""Settings of pip that change neither what is installed nor where it comes from."""


def main(words: Sequence[str]) -> int:
    pip = [sys.executable, "-m", "pip"]
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    variables = None if listed.returncode else uv_variables(listed.stdout)
    if variables is not None and has_uv(pip, words):
        # pip adds its constraints to those of -c, in place of which uv would take its own
        constraints = [word for path in variables.pop("UV_CONSTRAINT", "").split() for word in ("-c", path)]
        environment = {**variables, **os.environ}
        command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", sys.executable, *constraints, *words]
        if subprocess.run(command, env=environment, check=False).returncode == 0:
            return 0
        print("install.py: uv could not; pip goes on", file=sys.stderr)
    return subprocess.run([*pip, "install", "-qq", *words], check=False).returncode


def uv_variables(listed: str) -> dict[str, str] | None:
    """Return the variables that tell uv what pip's settings say.

    Args:
        listed: what `pip config list` prints, a line `SECTION.NAME='VALUE'` for each; those of the environment come first and count.
    Returns:
        None if uv would not know one of the settings.
    """
    found: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if name in WITHOUT_EFFECT or section not in ("global", "install", ":env:"):
            continue
        if name not in VARIABLES:
            return None
        separator = "," if name == "find-links" else " "
        found.setdefault(VARIABLES[name], separator.join(str(ast.literal_eval(value)).split()))
    # as pip does: it compiles, and takes the best release of all indexes, not those of the first that has the package
    return {"UV_COMPILE_BYTECODE": "1", "UV_INDEX_STRATEGY": "unsafe-best-match", **found}


def has_uv(pip: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether uv is in this environment, after an attempt to install it under the same constraints."""
    if importlib.util.find_spec("uv") is None:
        constraints = [word for pair in zip(words, words[1:]) if pair[0] == "-c" for word in pair]
        subprocess.run([*pip, "install", "-qq", *constraints, "uv"], capture_output=True, check=False)
        importlib.invalidate_caches()
    return importlib.util.find_spec("uv") is not None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
