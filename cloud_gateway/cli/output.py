"""What commands print."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

# What nodes report ends up here; it must not steer the terminal of whoever reads it.
CONTROL = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def show(text: str = "", *, file: TextIO | None = None) -> None:
    """Print with every control character but newline and tab spelled out."""
    print(text.translate(CONTROL), file=file or sys.stdout, flush=True)


def show_json(value: Any) -> None:
    show(json.dumps(value, indent=4, ensure_ascii=False))
