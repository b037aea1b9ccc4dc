"""Collection of unused images: least recently used first, between a high and a low mark, never those of wanted pods."""

from __future__ import annotations

from tinyedge.core.desk import Desk, Op
from tinyedge.core.run import PodRun, containers_of
from tinyedge.events import MachineSeen, OpDone, RemoveImage
from tinyedge.model.image import normal_reference
from tinyedge.model.runtime import ImageSeen

YOUNG_MS = 120_000  # an image this new may be about to be used


class ImageCollector:
    """`last_used` knows each image by id, in monotonic ms: since when nothing uses it, or when it was first seen."""

    def __init__(self, high_percent: int, low_percent: int, desk: Desk, runs: dict[str, PodRun]) -> None:
        self._high = high_percent
        self._low = low_percent
        self._desk = desk
        self._runs = runs
        self._first_seen: dict[str, int] = {}
        self._last_used: dict[str, int] = {}
        self._removing: set[str] = set()

    def seen(self) -> None:
        now = self._desk.now
        ids = {image.id for image in self._desk.images or ()}
        self._first_seen = {one: self._first_seen.get(one, now) for one in ids}
        self._last_used = {one: at for one, at in self._last_used.items() if one in ids}
        self._mark_used()

    def _mark_used(self) -> list[ImageSeen]:
        """The images that nothing uses, after noting those that something does."""
        wanted = {
            normal_reference(one.image) for run in self._runs.values() if run.pod for one in containers_of(run.pod)
        }
        running = {one.image_id for run in self._runs.values() for one in run.newest.values()}
        unused = []
        for image in self._desk.images or ():
            names = {normal_reference(name) for name in (*image.tags, *image.digests)}
            if image.id in running or names & (wanted | running) or image.id in wanted:
                self._last_used[image.id] = self._desk.now
            elif not image.pinned and not any("/pause:" in name for name in names):
                unused.append(image)
        return sorted(unused, key=self._age)

    def _age(self, image: ImageSeen) -> tuple[int, int]:
        return (self._last_used.get(image.id, -1), self._first_seen.get(image.id, 0))

    def collect(self, seen: MachineSeen) -> None:
        """Above the high mark, remove down to the low one."""
        total = seen.image_disk_total_bytes or seen.disk_total_bytes
        free = seen.image_disk_free_bytes if seen.image_disk_total_bytes else seen.disk_free_bytes
        used = total - free
        if not total or self._removing or used * 100 < total * self._high:
            return
        excess = used - total * self._low // 100
        for image in self._mark_used():
            if excess <= 0:
                return
            if self._desk.now - self._first_seen.get(image.id, self._desk.now) >= YOUNG_MS:
                self._remove(image)
                excess -= image.bytes

    def collect_all(self) -> None:
        """The disk is short: everything that nothing uses."""
        for image in self._mark_used():
            self._remove(image)

    def _remove(self, image: ImageSeen) -> None:
        if image.id in self._removing or self._desk.runtime is None:
            return
        self._removing.add(image.id)
        name = (*image.tags, image.id)[0]
        self._desk.note("info", "image.removed", image=name, bytes=image.bytes)
        self._desk.act(None, f"image:{image.id}", RemoveImage(self._desk.number(), image.id))

    def removed(self, op: Op, answer: OpDone) -> None:
        if isinstance(op.effect, RemoveImage):
            self._removing.discard(op.effect.image_id)
            if answer.error:
                self._desk.note("warning", "image.not_removed", image=op.effect.image_id, message=answer.message)
