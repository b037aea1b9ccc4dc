"""Logs of containers: read for people, rotated, removed, measured."""

from tinyedge.adapters.logs.files import remove, rotate, sizes
from tinyedge.adapters.logs.reading import LogQuery, read, read_file

__all__ = ["LogQuery", "read", "read_file", "remove", "rotate", "sizes"]
