"""What becomes of an upgrade of the node's own software, told to whom it concerns: log, black box, Kubernetes."""

from __future__ import annotations

from tinyedge.core.desk import Desk
from tinyedge.events import UpgradeEnded

_REASONS = {
    "confirmed": ("info", "Normal", "Upgraded"),
    "rolled-back": ("error", "Warning", "UpgradeFailed"),
    "switched": ("info", "Normal", "VersionSwitched"),
}


def upgrade_ended(ended: UpgradeEnded, desk: Desk) -> None:
    level, kind, reason = _REASONS.get(ended.verdict, _REASONS["rolled-back"])
    desk.node_event(kind, reason, ended.message)
    desk.note(level, "upgrade.ended", version=ended.version, verdict=ended.verdict, what=ended.message)
    desk.record("upgrade", version=ended.version, verdict=ended.verdict, what=ended.message)
