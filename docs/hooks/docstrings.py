"""The package's docstrings as mkdocstrings reads them: formulas as in the pages, examples as code."""

import re
from typing import Any

from griffe import Extension, Object

MATH = re.compile(r"^\.\. math:: (.*(?:\n.+)*)$", re.MULTILINE)
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Docstrings(Extension):
    """Rewrites every docstring as it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """See the module."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub("Examples:", MATH.sub(r"$$\1$$", obj.docstring.value))
