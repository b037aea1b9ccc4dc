"""How fast the client asks, and what it counts."""

from __future__ import annotations

from collections import Counter

import trio
from msgspec import Struct, field


class Counters(Struct):
    """For metrics. `requests` by (verb, resource, code), code 0 for no answer; `lists` and `watches` begun, by
    resource; `watch_breaks`: watches that ended otherwise than by their time, by resource; `throttled_s`: time that
    requests waited, for our own limit or because the server asked for it."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    lists: Counter[str] = field(default_factory=Counter)
    watches: Counter[str] = field(default_factory=Counter)
    watch_breaks: Counter[str] = field(default_factory=Counter)
    throttled_s: float = 0.0


def watch_numbers(counters: Counters) -> dict[str, tuple[str, float]]:
    """For the metrics page: name with labels → (help, value)."""
    by_resource = (
        ("lists", "Lists begun.", counters.lists),
        ("watches", "Watches begun.", counters.watches),
        ("watch_breaks", "Watches that broke.", counters.watch_breaks),
    )
    return {
        f'tinyedge_gateway_api_{name}_total{{resource="{resource}"}}': (words, count)
        for name, words, counts in by_resource
        for resource, count in sorted(counts.items())
    }


class Bucket:
    """`qps` in the long run, `burst` at once; waiters go in the order in which they came."""

    def __init__(self, qps: float, burst: float) -> None:
        self._interval_s = 1 / qps
        self._ahead_s = burst / qps
        self._next_s = float("-inf")  # when the next one would be due if there were no burst

    async def take(self) -> float:
        """Wait for a turn; how long it took, in seconds. A turn that is given up is lost."""
        now = trio.current_time()
        due = max(self._next_s, now - self._ahead_s) + self._interval_s
        self._next_s = due
        if due <= now:
            return 0.0
        await trio.sleep(due - now)
        return due - now
