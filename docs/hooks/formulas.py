r"""Formulas as MathML: a browser draws them by itself, without a script or a network.

`pymdownx.arithmatex` marks them up as \(...\) and \[...\].
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace them."""
    return FORMULA.sub(mathml, content)


def mathml(formula: re.Match[str]) -> str:
    """One formula, in its line or displayed."""
    return convert(html.unescape(formula[2]), display="block" if formula[1] == "div" else "inline")
