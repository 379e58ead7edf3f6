"""Formulas of docstrings, `.. math:: ...`, as the pages write them."""

import re
from typing import Any

from griffe import Extension, Object

MATH = re.compile(r"^\.\. math:: (.*(?:\n.+)*)$", re.MULTILINE)


class Formulas(Extension):
    """Rewrites every docstring as it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """See the module."""
        if obj.docstring:
            obj.docstring.value = MATH.sub(r"$$\1$$", obj.docstring.value)
