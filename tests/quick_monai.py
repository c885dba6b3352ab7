"""Have MONAI read configs by libyaml and look for its components once, not for each config: the same results in a sixth of the time.

Only the server of forks imports this module, before everything else; a test that runs alone has MONAI as its users have it.
"""

from __future__ import annotations

from functools import cache

import yaml

python_loader = yaml.SafeLoader
yaml.SafeLoader = getattr(yaml, "CSafeLoader", python_loader)  # `monai.utils.misc` derives its loader from it
import monai.utils.misc  # noqa: E402, F401
from monai.bundle.config_item import ComponentLocator  # noqa: E402

yaml.SafeLoader = python_loader

_find = ComponentLocator._find_classes_or_functions
_found = cache(lambda names: _find(ComponentLocator(), names))
ComponentLocator._find_classes_or_functions = lambda self, names: _found(tuple(names))  # type: ignore[method-assign]
