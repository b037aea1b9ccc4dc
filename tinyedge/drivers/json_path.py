"""A way into a JSON document, as people write it: `temperature`, `sensor.values[0]`, `$["a b"].c`. Nothing but names
and places: no wildcards, no filters, no code. Pure."""

from __future__ import annotations

import re
from typing import Any

from tinyedge.errors import BadInput

PATH_CHARS_MAX = 256
_STEP = re.compile(r"""\.?([^\s.\[\]"'$]+)|\[(\d{1,6})\]|\["([^"\\]*)"\]|\['([^'\\]*)'\]""")

Path = tuple[str | int, ...]


def parse(text: str, field: str = "path") -> Path:
    """Names and places, from the outside in; none for the whole document. Raises BadInput."""
    if len(text) > PATH_CHARS_MAX:
        raise BadInput(field, text, f"at most {PATH_CHARS_MAX} characters")
    steps: list[str | int] = []
    at = 1 if text.startswith("$") else 0
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None or (step[1] and text[at] != "." and steps):
            raise BadInput(field, text, 'a path such as sensor.values[0] or $["a name"]')
        name = next((group for group in (step[1], step[3], step[4]) if group is not None), None)
        steps.append(int(step[2]) if name is None else name)
        at = step.end()
    return tuple(steps)


def find(document: Any, path: Path) -> Any:
    """What is there; None when nothing is."""
    for step in path:
        if isinstance(step, int):
            if not isinstance(document, list) or step >= len(document):
                return None
            document = document[step]
        elif isinstance(document, dict):
            document = document.get(step)
        else:
            return None
    return document
