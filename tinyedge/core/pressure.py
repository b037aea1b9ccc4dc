"""Node pressure: when a node runs short, what goes first, and when that is over."""

from __future__ import annotations

from msgspec import Struct


class Policy(Struct, frozen=True):
    """Thresholds; 0 turns one off. Shares are percent of the whole."""

    memory_available_mb: int = 50
    disk_free_percent: int = 10
    image_disk_free_percent: int = 10
    inodes_free_percent: int = 5
    pids_free_percent: int = 10
    transition_s: int = 60
    image_gc_high_percent: int = 85
    image_gc_low_percent: int = 80
    log_max_bytes: int = 10 * 1024 * 1024
    log_files: int = 5
