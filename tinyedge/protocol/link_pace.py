"""How fast and how often: budgets of bytes, and pauses between attempts. Time and chance come in as arguments."""

from __future__ import annotations

SECOND_MS = 1000
FIRST_CAP_S = 10.0  # until a gateway has named its own
FIRST_DELAY_S = 1.0


class Bucket:
    """A budget of bytes per second. It may be overdrawn by one message, which then has to be waited for."""

    def __init__(self, rate: int, now_ms: int) -> None:
        self._rate = rate
        self._room = float(rate)
        self._then_ms = now_ms

    def has_room(self, now_ms: int) -> bool:
        self._room = min(self._rate, self._room + (now_ms - self._then_ms) * self._rate / SECOND_MS)
        self._then_ms = now_ms
        return self._room > 0

    def take(self, size: int) -> None:
        self._room -= size

    def free_ms(self, now_ms: int) -> int:
        return now_ms + 1 + int(max(0.0, -self._room) * SECOND_MS / self._rate)


class Backoff:
    """How long to wait before the next attempt: anything up to a bound that doubles from one second to the cap (full
    jitter), so that a thousand nodes that lost the same gateway don't come back together."""

    def __init__(self, cap_s: float = FIRST_CAP_S) -> None:
        self.cap_s = cap_s
        self._bound_s = FIRST_DELAY_S

    def delay_s(self, random: float) -> float:
        """`random` is drawn from [0, 1)."""
        bound_s = min(self._bound_s, self.cap_s)
        self._bound_s = min(self._bound_s * 2, max(self.cap_s, FIRST_DELAY_S))
        return random * bound_s

    def reset(self) -> None:
        """A session has lasted."""
        self._bound_s = FIRST_DELAY_S
