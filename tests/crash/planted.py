"""Stores with one bug each, planted by subclassing: the explorer must catch every one of them, or it proves nothing.

`open_store("store", ...)` is the real one.
"""

from __future__ import annotations

from typing import Any

from tinyedge.store.store import Store

KINDS: dict[str, type[Store]] = {"store": Store}


def open_store(kind: str, path: str, **options: Any) -> Store:
    """Open the store in `path` as the class that `kind` names would."""
    return KINDS[kind].open(path, **options)
