"""What one life of the daemon begins with: its log, its clocks, who and where it is, its store and its runtime.

Part of the wiring, beside daemon.py, which joins these.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractAsyncContextManager, suppress

from msgspec import structs

from tinyedge import __version__, trial, wire
from tinyedge import events as ev
from tinyedge.adapters import host
from tinyedge.adapters.runtime import Runtime
from tinyedge.backend import Life
from tinyedge.config import Config
from tinyedge.core.pressure import Policy
from tinyedge.errors import StoreError, StoreLocked
from tinyedge.limits import MIB
from tinyedge.log import Log, LogFile
from tinyedge.store.store import Loaded, Store, StoreOptions
from tinyedge.uplink import Known, known

LOG = "TINYEDGE_LOG"  # in the environment, from a script of init that keeps no log: the file that this goes to


def open_log(config: Config) -> Log:
    def stamp(wall_s: float) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_s))

    file = LogFile(os.environ.get(LOG, ""))
    return Log(
        lambda line: file.write(line.encode(errors="replace")),  # a full or closed log does not end the daemon
        wall_s=time.time,
        mono_s=time.monotonic,
        stamp=stamp,
        form=config.log.format,
        level=config.log.level,
    )


class Clock:
    """Both clocks, and whether the wall clock can be believed."""

    def __init__(self) -> None:
        self._wall = host.WallClock()

    def mono_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def trusted(self) -> bool:
        return self._wall.trusted()

    def trusted_wall_ms(self) -> int:
        """0 while it is not trusted."""
        return self.wall_ms() if self.trusted() else 0


def facts_of(config: Config) -> tuple[Known, ev.NodeFacts]:
    """Who this node is, and what it runs on. The name that a gateway knows it by, or shall, goes before
    the host's."""
    found = known(config)
    facts = host.node_facts(
        name=config.node.name or found.name,
        pods_dir=config.node.pods_dir,
        logs_dir=config.node.logs_dir,
        cluster_dns=config.node.cluster_dns,
        cgroup_driver=config.runtime.cgroup_driver,
    )
    has_broker = bool(config.mqtt.url)
    return found, structs.replace(facts, mqtt=has_broker, mqtt_events=has_broker and config.mqtt.twin_events)


def open_store(config: Config, clock: Clock, launch: trial.Launch, reason: str) -> tuple[Store, str]:
    """The store, and why it is read-only ("" if it is not). A version on trial keeps to the format that it found."""
    series, keep = config.series, launch.trial is not None
    options = StoreOptions(series_bytes=series.bytes_max, series_age_s=series.age_days * 86400, keep_format=keep)
    path = config.store.path
    refused: StoreError | None = None
    if not reason:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return Store.open(path, options=options, wall_ms=clock.trusted_wall_ms), ""
        except OSError as error:
            folder = os.path.dirname(path)
            remedy = "run it as root, or correct store.path"
            refused = StoreError(f"can't make {folder}", error.strerror or str(error), remedy)
        except StoreLocked:
            raise
        except StoreError as error:
            refused = error
    try:
        return Store.open(path, options=options, wall_ms=clock.trusted_wall_ms, read_only=True), reason or str(refused)
    except StoreError:
        if refused is not None:
            raise refused from None
        raise


def boot_reason(loaded: Loaded, facts: ev.NodeFacts) -> str:
    row = loaded.tables.get("node", {}).get("self")
    with suppress(ValueError):  # the core reports a row that can't be read
        last = wire.decode("node", row).boot_id if row else ""
        return host.boot_reason(
            last_boot_id=last, boot_id=facts.boot_id, clean=loaded.report.clean, watchdog=host.watchdog_reset()
        )
    return "crash"


def report_start(log: Log, store: Store, loaded: Loaded, life: Life, node: str) -> None:
    report, reason = loaded.report, life.read_only
    log.note("info", "daemon.start", {"version": __version__, "node": node, "last_end": life.boot_reason})
    log.note("info", "store.open", {"sequence": report.sequence, "replayed": report.replayed, "clean": report.clean})
    for fault in store.status().faults:
        log.note("warning", f"store.{fault.kind}", {"what": fault.what, "why": fault.why, "remedy": fault.remedy})
    if reason:
        log.note("error", "store.read_only", {"reason": reason, "remedy": "tinyedge doctor"})


def policy(config: Config) -> Policy:
    return Policy(
        memory_available_mb=config.pressure.memory_available_mb,
        disk_free_percent=config.pressure.disk_free_percent,
        image_disk_free_percent=config.pressure.image_disk_free_percent,
        inodes_free_percent=config.pressure.inodes_free_percent,
        transition_s=config.pressure.transition_s,
        image_gc_high_percent=config.images.gc_high_percent,
        image_gc_low_percent=config.images.gc_low_percent,
        log_max_bytes=config.logs.container_max_mb * MIB,
        log_files=config.logs.container_files,
    )


def open_runtime(config: Config, facts: ev.NodeFacts) -> AbstractAsyncContextManager[Runtime]:
    if config.runtime.kind == "process":
        from tinyedge.adapters import process  # noqa: PLC0415 - neither runtime pays for the other

        return process.open_runtime(config.runtime.endpoint, facts.name)
    from tinyedge.adapters import cri  # noqa: PLC0415

    return cri.open_runtime(config.runtime.endpoint, facts.name, relist_s=config.runtime.relist_s)
