"""Ports for those who have to be told a number."""

from __future__ import annotations

import random
import socket

# Below those that the kernel gives to connections, which else may take one before its listener does.
_numbers = iter(random.SystemRandom().sample(range(10_000, 32_000, 10), 2_200))


def free_port() -> int:
    """One on which nobody listens, nor on the nine after it; never given twice by a process."""
    while True:
        first = next(_numbers)
        if all(_is_free(port) for port in range(first, first + 10)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
