"""The tables of the state, in memory as rows, and what this step has changed of them.

Every change goes through `put` and `delete`, so that memory and disk can't part: what the store will hold once the
step is committed is exactly what `durable` encodes. A put of an equal row writes nothing.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from tinyedge import wire
from tinyedge.core.digest import digest
from tinyedge.events import Append, Delete, Put, Trim, Write
from tinyedge.model.pod import ConfigMap, Pod, Secret, ServiceAccountTokenProjection
from tinyedge.wire import (
    CLOUD,
    AuditRow,
    ConfigMapRow,
    DeviceModelRow,
    DeviceRow,
    FolderRow,
    GoneRow,
    JobRow,
    LocalRuleRow,
    MapperRow,
    NodeRow,
    PodRow,
    ReadingRow,
    RefusedRow,
    RouteStateRow,
    RuleEndpointRow,
    RuleRow,
    RuleStateRow,
    SecretRow,
    StateRow,
    TokenRow,
    TwinRow,
)

Stored = dict[str, dict[str, bytes]]
_OBJECTS = ("pod", "configmap", "secret", "device", "devicemodel", "localrule", "rule", "ruleendpoint")


class Tables:
    """Rows by table and key. `unreadable` names what did not decode: (table, key, why); it stays on disk as it is
    until something takes its place or it is forgotten. `aside` has those of them that were set aside, by table and key,
    to be looked at only."""

    def __init__(self, stored: Stored) -> None:
        self.pods: dict[str, PodRow] = {}
        self.states: dict[str, StateRow] = {}
        self.configmaps: dict[str, ConfigMapRow] = {}
        self.secrets: dict[str, SecretRow] = {}
        self.folders: dict[str, FolderRow] = {}
        self.nodes: dict[str, NodeRow] = {}
        self.gone: dict[str, GoneRow] = {}
        self.refused: dict[str, RefusedRow] = {}
        self.tokens: dict[str, TokenRow] = {}
        self.devices: dict[str, DeviceRow] = {}
        self.models: dict[str, DeviceModelRow] = {}
        self.twins: dict[str, TwinRow] = {}
        self.readings: dict[str, ReadingRow] = {}
        self.mappers: dict[str, MapperRow] = {}
        self.local_rules: dict[str, LocalRuleRow] = {}
        self.rules: dict[str, RuleRow] = {}
        self.rule_endpoints: dict[str, RuleEndpointRow] = {}
        self.rule_states: dict[str, RuleStateRow] = {}
        self.route_states: dict[str, RouteStateRow] = {}
        self.jobs: dict[str, JobRow] = {}
        self.audits: dict[str, AuditRow] = {}
        self.rows: dict[str, dict[str, Any]] = {
            "pod": self.pods,
            "podstate": self.states,
            "configmap": self.configmaps,
            "secret": self.secrets,
            "folder": self.folders,
            "node": self.nodes,
            "gone": self.gone,
            "refused": self.refused,
            "token": self.tokens,
            "device": self.devices,
            "devicemodel": self.models,
            "twin": self.twins,
            "reading": self.readings,
            "mapper": self.mappers,
            "localrule": self.local_rules,
            "rule": self.rules,
            "ruleendpoint": self.rule_endpoints,
            "rulestate": self.rule_states,
            "routestate": self.route_states,
            "job": self.jobs,
            "audit": self.audits,
        }
        self.unreadable: list[tuple[str, str, str]] = []
        self.aside: dict[tuple[str, str], Any] = {}
        self._raw: Stored = {}  # what can't be read, byte for byte
        self._writes: dict[tuple[str, str], Put | Delete] = {}
        self._series: list[Append | Trim] = []
        self._sizes: dict[tuple[str, str], int] = {}
        self.bytes = 0  # of all objects, as they are stored
        self.pending_bytes = 0  # of this step's writes
        self.read_only = False
        self._before: dict[tuple[str, str], Any] = {}  # what the disk holds of the rows changed since the last commit
        for table, rows in stored.items():
            for key, value in rows.items():
                self._load(table, key, value)

    def _load(self, table: str, key: str, value: bytes) -> None:
        try:
            self.rows[table][key] = wire.decode(table, value)
        except (msgspec.MsgspecError, KeyError) as error:
            self.unreadable.append((table, key, str(error)))
            self._raw.setdefault(table, {})[key] = value
            if wire.is_aside(value):
                with suppress(msgspec.MsgspecError, KeyError):
                    self.aside[table, key] = wire.decode_aside(table, value)
        else:
            self._weigh(table, key, len(value))

    def _weigh(self, table: str, key: str, size: int) -> None:
        if table in _OBJECTS:
            self.bytes += size - self._sizes.pop((table, key), 0)
            if size:
                self._sizes[table, key] = size

    def put(self, table: str, key: str, row: wire.Row) -> bool:
        """True when that changes anything."""
        old = self.rows[table].get(key)
        if old == row:
            return False
        value = wire.encode(row)
        raw = self._take_raw(table, key)
        self._before.setdefault((table, key), raw if old is None else old)
        self.rows[table][key] = row
        self._weigh(table, key, len(value))
        self._write(Put(table, key, value), len(value))
        return True

    def delete(self, table: str, key: str) -> bool:
        old = self.rows[table].pop(key, None)
        if old is None:
            return False
        self._before.setdefault((table, key), old)
        self._weigh(table, key, 0)
        self._write(Delete(table, key), 0)
        return True

    def forget(self, table: str, key: str) -> bool:
        """Delete a row that can't be read; True when there was one."""
        raw = self._take_raw(table, key)
        if raw is None:
            return False
        self._before.setdefault((table, key), raw)
        self._write(Delete(table, key), 0)
        return True

    def _take_raw(self, table: str, key: str) -> bytes | None:
        raw = self._raw.get(table, {}).pop(key, None)
        if raw is not None:
            self.unreadable = [row for row in self.unreadable if row[:2] != (table, key)]
            self.aside.pop((table, key), None)
        return raw

    def _write(self, write: Put | Delete, size: int) -> None:
        self.pending_bytes += size
        self._writes.pop((write.table, write.key), None)
        self._writes[write.table, write.key] = write

    def why_unreadable(self, table: str, key: str) -> str:
        """Why a row is there and can't be used; empty when that is not so."""
        return next((why for of, name, why in self.unreadable if (of, name) == (table, key)), "")

    def why_aside(self, table: str, key: str) -> str:
        """As `why_unreadable`, for who has said already that it is set aside."""
        return self.why_unreadable(table, key).removeprefix(wire.WAS_ASIDE)

    def append(self, series: str, item: bytes) -> None:
        self.pending_bytes += len(item)
        self._series.append(Append(series, item))

    def trim(self, series: str, through: int) -> None:
        self._series.append(Trim(series, through))

    def set_read_only(self, read_only: bool) -> None:
        """Changes made while the store can't be written are kept in memory, and written once it can be again."""
        if self.read_only and not read_only:
            for table, key in self._before:
                row = self.rows[table].get(key)
                self._write(Delete(table, key) if row is None else Put(table, key, wire.encode(row)), 0)
        self.read_only = read_only

    def take_writes(self) -> tuple[Write, ...]:
        """What this step has to commit: one write per key, the last one decided; then what goes to series, which is
        dropped while the store can't be written."""
        writes, self._writes, self.pending_bytes = self._writes, {}, 0
        series, self._series = self._series, []
        if self.read_only:
            return ()
        self._before.clear()
        return (*writes.values(), *series)

    def durable(self) -> Stored:
        """What the store holds once every step so far is committed."""
        stored = {table: {key: wire.encode(row) for key, row in rows.items()} for table, rows in self.rows.items()}
        for table, raw in self._raw.items():
            stored.setdefault(table, {}).update(raw)
        for (table, key), old in self._before.items():
            if old is None:
                stored[table].pop(key, None)
            else:
                stored[table][key] = old if isinstance(old, bytes) else wire.encode(old)
        return stored

    # --- Refs ----------------------------------------------------------------------------------

    def configmap(self, key: str) -> ConfigMap | None:
        row = self.configmaps.get(key)
        return row.object if row else None

    def secret(self, key: str) -> Secret | None:
        row = self.secrets.get(key)
        return row.object if row else None

    def from_cloud(self, pod: Pod) -> bool:
        row = self.pods.get(pod.key)
        return row is not None and row.source == CLOUD and row.uid == pod.metadata.uid

    def token(self, pod: Pod, wanted: ServiceAccountTokenProjection) -> str | None:
        row = self.tokens.get(token_key(pod.metadata.uid, wanted))
        return row.token if row else None


def token_key(uid: str, wanted: ServiceAccountTokenProjection) -> str:
    return f"{uid} {digest(wanted.audience, str(wanted.expiration_seconds))}"
