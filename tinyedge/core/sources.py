"""Where wanted objects come from: manifest folders, requests over the local API, and the cloud.

An object belongs to its source, `file:FOLDER/PATH`, `api` or `cloud`. Of files that declare one object the first in
order wins; against another kind of source the owner keeps it. Who loses is told, and takes over when the owner lets go.

A pod from the cloud has the uid that the API server gave it. One of the same name with another uid is its successor:
it starts once nothing is left of the one before.

A folder that is missing, unreadable, or not the one that it was, removes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct, structs

from tinyedge import wire
from tinyedge.core.desk import Desk
from tinyedge.core.digest import stable_uid
from tinyedge.core.hold import is_held, is_waiting, waits_anew
from tinyedge.core.run import sandbox_hash
from tinyedge.core.status import rfc3339
from tinyedge.errors import require
from tinyedge.events import FileSeen, FolderSeen
from tinyedge.limits import (
    CONTAINERS_PER_POD_MAX,
    DEVICE_MODELS_MAX,
    DEVICES_MAX,
    OBJECT_BYTES_MAX,
    PODS_MAX,
    RECORD_BYTES_MAX,
    RULES_MAX,
    STATE_BYTES_MAX,
    VALUE_BYTES_MAX,
)
from tinyedge.model.device import Device, DeviceModel
from tinyedge.model.objects import Object
from tinyedge.model.pod import ConfigMap, Pod, Secret
from tinyedge.model.rule import LocalRule, Rule, RuleEndpoint
from tinyedge.wire import (
    CLOUD,
    ConfigMapRow,
    Deletion,
    DeviceModelRow,
    DeviceRow,
    FileProblemRow,
    FileRow,
    FolderRow,
    GoneRow,
    LocalRuleRow,
    PodRow,
    RuleEndpointRow,
    RuleRow,
    SecretRow,
    Successor,
)

API = "api"
BUDGET_BYTES = RECORD_BYTES_MAX // 3  # of writes in one step: what is left of a large folder waits for the next
APPLY_BYTES_MAX = RECORD_BYTES_MAX * 2 // 5  # a request is one promise, kept in one step
KEYS_BYTES_MAX = VALUE_BYTES_MAX // 2  # of what one folder declares: its row is one value
PROBLEMS_KEPT_MAX = 8  # of one file
Plain = ConfigMap | Secret | Device | DeviceModel | LocalRule | Rule | RuleEndpoint
ObjectRow = ConfigMapRow | SecretRow | DeviceRow | DeviceModelRow | LocalRuleRow | RuleRow | RuleEndpointRow
MOST = {  # of a kind, on one node
    "Device": DEVICES_MAX,
    "DeviceModel": DEVICE_MODELS_MAX,
    "LocalRule": RULES_MAX,
    "Rule": RULES_MAX,
    "RuleEndpoint": RULES_MAX,
}
ROOM_BYTES = STATE_BYTES_MAX - OBJECT_BYTES_MAX  # for objects; the rest is for what must always fit


require(APPLY_BYTES_MAX > OBJECT_BYTES_MAX, "the largest object can be applied")
require(BUDGET_BYTES + APPLY_BYTES_MAX < RECORD_BYTES_MAX, "a step with a request in it fits in a record")


def identity(obj: Object) -> str:
    return f"{obj.kind} {obj.key}"


def source_of(folder: str, path: str) -> str:
    return f"file:{folder}/{path}"


class Refusal(Struct, frozen=True):
    """Why an object can't be kept: one CamelCase word, and a sentence whose subject is the object."""

    reason: str
    message: str


def in_words(owner: str) -> str:
    return "the cloud" if owner == CLOUD else owner.removeprefix("file:")


class Sources:
    """`changed` collects the identities of objects that this step has changed; the edge takes them. `freed` says that
    something was let go, so that what had to wait may be taken now."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tables = desk.tables
        self.freed = False
        self.changed: dict[str, None] = {}  # in the order of the changes: a set's would differ from life to life
        self.problems: dict[str, str] = {}  # of a folder as a whole
        self._files: dict[str, dict[str, FileRow]] = {
            folder: dict(row.files) for folder, row in self._tables.folders.items()
        }
        self._told: dict[tuple[str, str], str] = {}  # (folder, path) → digest whose objects this life has had
        self._key_bytes = {
            folder: sum(_key_bytes(file.keys, file.shadowed) for file in files.values())
            for folder, files in self._files.items()
        }
        self._shadowed: dict[str, dict[str, Object]] = {}  # identity → source → its version of the object

    # --- folders ---------------------------------------------------------------------------------

    def folder(self, seen: FolderSeen) -> bool:
        """Take a folder in. False when this step has written enough: call again with the same in the next one."""
        if seen.problem:
            self._say(seen.folder, seen.problem)
            return True
        files = self._files.setdefault(seen.folder, {})
        self._key_bytes.setdefault(seen.folder, 0)
        row = self._tables.folders.get(seen.folder, FolderRow())
        paths = {file.path for file in seen.files}
        known = {path for path, file in files.items() if file.keys}
        stranger = bool(known) and row.identity not in ("", seen.identity) and not known & paths
        for file in sorted(seen.files, key=lambda one: one.path):
            if not self._file(seen.folder, files, file):
                self._flush(seen.folder, row.identity or seen.identity)
                return False
        if stranger:
            self._say(seen.folder, f"this is another folder than before: what {len(known)} files declared is kept")
        else:
            self.problems.pop(seen.folder, None)
            for path in sorted(files.keys() - paths):
                self._drop_file(seen.folder, files, path)
        self._flush(seen.folder, row.identity if stranger else seen.identity)
        return True

    def _say(self, folder: str, problem: str) -> None:
        if self.problems.get(folder) != problem:
            self.problems[folder] = problem
            self._desk.note("warning", "manifests.folder", folder=folder, problem=problem)

    def _flush(self, folder: str, identity: str) -> None:
        """Bring the stored rows of all folders up to date: one may have taken an object from a file of another."""
        for name, files in self._files.items():
            row = self._tables.folders.get(name)
            known = identity if name == folder else row.identity if row else ""
            self._tables.put("folder", name, FolderRow(known, _fitting(files)))

    def _file(self, folder: str, files: dict[str, FileRow], file: FileSeen) -> bool:
        known = files.get(file.path)
        if file.objects is None:
            self._without_objects(folder, files, file)
            return True
        if self._told.get((folder, file.path)) == file.digest and known is not None:
            return True  # the same event again, for the rest of its files
        source = source_of(folder, file.path)
        keys: list[str] = []
        shadowed: list[str] = []
        problems = [FileProblemRow(one.line, one.field, one.message) for one in file.problems]
        for obj in file.objects:
            if self._tables.pending_bytes > BUDGET_BYTES:
                return False
            name = identity(obj)
            refusal, owner = self._declare(obj, source, folder, keys)
            if refusal:
                problems.append(FileProblemRow(0, name, refusal))
            if owner:
                shadowed.append(name)
            elif name not in keys and (not refusal or (known and name in known.keys)):
                keys.append(name)
        for name in (*known.keys, *known.shadowed) if known else ():
            if name not in keys and name not in shadowed:
                self._release(name, source)
        self._key_bytes[folder] += _key_bytes(keys, shadowed) - (_key_bytes(known.keys, known.shadowed) if known else 0)
        again = shadowed or len(problems) > len(file.problems)
        files[file.path] = FileRow("" if again else file.digest, keys, shadowed, problems[:PROBLEMS_KEPT_MAX])
        self._told[folder, file.path] = file.digest
        for problem in problems:
            self._desk.note("warning", "manifests.problem", file=f"{folder}/{file.path}", problem=problem.message)
        return True

    def _declare(self, obj: Object, source: str, folder: str, keys: list[str]) -> tuple[str, str]:
        """(why not, who owns it instead)"""
        name = identity(obj)
        if name in keys:
            return f"{name} stands in this file twice", ""
        if self._key_bytes[folder] + _key_bytes(keys, [name]) > KEYS_BYTES_MAX:
            return "this folder declares too many objects", ""
        return self._put(obj, source)

    def _without_objects(self, folder: str, files: dict[str, FileRow], file: FileSeen) -> None:
        known = files.get(file.path)
        if file.problems:
            self._told.pop((folder, file.path), None)
            files[file.path] = self._broken(known, file)
        elif known is None or known.digest not in (file.digest, ""):
            self._desk.note("error", "manifests.untold", file=f"{folder}/{file.path}")

    def _broken(self, known: FileRow | None, file: FileSeen) -> FileRow:
        """A file that can't be used keeps what its last good version declared."""
        problems = [FileProblemRow(one.line, one.field, one.message) for one in file.problems[:PROBLEMS_KEPT_MAX]]
        row = structs.replace(known or FileRow(""), digest=file.digest, problems=problems)
        if row != known:
            for one in file.problems:
                self._desk.note(
                    "warning", "manifests.problem", file=one.file, line=one.line, field=one.field, problem=one.message
                )
        return row

    def _drop_file(self, folder: str, files: dict[str, FileRow], path: str) -> None:
        row = files.pop(path)
        self._key_bytes[folder] -= _key_bytes(row.keys, row.shadowed)
        self._told.pop((folder, path), None)
        for name in (*row.keys, *row.shadowed):
            self._release(name, source_of(folder, path))

    # --- requests --------------------------------------------------------------------------------

    def apply(self, objects: Sequence[Object]) -> tuple[str, str]:
        """(why not, what was done). All or nothing as far as can be told beforehand."""
        size = sum(len(wire.encode(one)) for one in objects)
        if size > APPLY_BYTES_MAX:
            return f"together they are {size} bytes, more than {APPLY_BYTES_MAX}: apply them in smaller parts", ""
        for obj in objects:
            owner = self._owner(identity(obj))
            if owner and owner != API and not self._going(obj):
                return f"{identity(obj)} is declared by {in_words(owner)}: change it there", ""
            if refusal := self._refusal(obj):
                return refusal.message, ""
        done = []
        for obj in objects:
            refused, _ = self._put(obj, API)
            if refused:
                return refused, ""
            done.append(f"{identity(obj)} applied")
        return "", "; ".join(done)

    def delete(self, kind: str, key: str, grace_s: int | None) -> tuple[str, str]:
        """(why not, what was done)"""
        name = f"{kind} {key}"
        row = self._row(name)
        if row is None:
            return ("", f"{name} deleted") if self._forget(name) else (f"{name} not found", "")
        owner = self._owner(name) or API  # a pod that is going already may be hurried
        if owner == CLOUD or (owner != API and self._declared(owner, name)):
            return f"{name} is declared by {in_words(owner)}: remove it there", ""
        if kind == "Pod":
            self._end_pod(key, grace_s)
            self._hand_on(name)
        else:
            self._release(name, owner)
        self._flush("", "")
        return "", f"{name} deleted"

    def _declared(self, owner: str, name: str) -> bool:
        """Whether the file that owns an object is there as far as anyone knows."""
        return any(
            source_of(folder, path) == owner and name in row.keys and folder not in self.problems
            for folder, files in self._files.items()
            for path, row in files.items()
        )

    # --- objects ---------------------------------------------------------------------------------

    def _row(self, name: str) -> PodRow | ObjectRow | None:
        kind, _, key = name.partition(" ")
        found: PodRow | ObjectRow | None = self._tables.rows[kind.lower()].get(key)
        return found

    def _owner(self, name: str) -> str:
        row = self._row(name)
        if isinstance(row, PodRow) and row.deletion:
            return row.successor.source if row.successor else ""
        return row.source if row else ""

    def _going(self, obj: Object) -> bool:
        row = self._row(identity(obj))
        return isinstance(row, PodRow) and row.deletion is not None and row.successor is None

    def _put(self, obj: Object, source: str) -> tuple[str, str]:
        """(why not, who owns it instead)"""
        name = identity(obj)
        owner = self._owner(name)
        if owner and owner != source:
            if not (owner.startswith("file:") and source.startswith("file:") and source < owner):
                self._shadowed.setdefault(name, {})[source] = obj
                return f"is declared by {in_words(owner)} already, which wins", owner
            self._demote(name, owner, source)
        if refusal := self._refusal(obj):
            return refusal.message, ""
        self._shadowed.get(name, {}).pop(source, None)
        if isinstance(obj, Pod):
            self._put_pod(obj, source)
        elif self._tables.put(obj.kind.lower(), obj.key, _object_row(self._dated(obj), source)):
            self.changed[name] = None
        return "", ""

    def _refusal(self, obj: Object, source: str = "") -> Refusal | None:
        """Why an object can't be kept; None when it can. An API server has seen to it already that what is immutable
        is not changed: what differs is another object of that name."""
        size = len(wire.encode(obj))
        if size > OBJECT_BYTES_MAX:
            return Refusal("TooLarge", f"is {size} bytes, more than {OBJECT_BYTES_MAX}")
        row = self._row(identity(obj))
        if obj.kind in MOST and row is None and (full := self._crowded(obj)):
            return full
        if row is None and self._tables.bytes + size > ROOM_BYTES:
            words = f"the store has no room for it: {self._tables.bytes} of {ROOM_BYTES} bytes are used"
            return Refusal("StoreFull", words)
        if isinstance(row, ConfigMapRow | SecretRow) and row.object.immutable and source != CLOUD:
            same = structs.replace(row.object, metadata=obj.metadata) == obj
            return None if same else Refusal("Immutable", "is immutable: delete it first")
        if isinstance(obj, Device | LocalRule) and (wanted := obj.spec.node_name) not in ("", self._desk.node.name):
            return Refusal("WrongNode", f"belongs to node {wanted}, and this is {self._desk.node.name}")
        return self._pod_refusal(obj, row) if isinstance(obj, Pod) else None

    def _crowded(self, obj: Object) -> Refusal | None:
        most = MOST[obj.kind]
        if len(self._tables.rows[obj.kind.lower()]) < most:
            return None
        return Refusal("TooMany", f"this node has {most} of its kind already, and takes no more")

    def _pod_refusal(self, pod: Pod, row: PodRow | ObjectRow | None) -> Refusal | None:
        if row is None and len(self._tables.pods) >= PODS_MAX:
            return Refusal("TooManyPods", f"this node has {PODS_MAX} pods already, and takes no more")
        count = len(pod.spec.containers) + len(pod.spec.init_containers)
        if count > CONTAINERS_PER_POD_MAX:
            return Refusal("Unsupported", f"has {count} containers, more than {CONTAINERS_PER_POD_MAX}")
        wanted, here = pod.spec.node_name, self._desk.node.name
        if wanted and wanted != here:
            return Refusal("WrongNode", f"is bound to node {wanted}, and this is {here}")
        waits = isinstance(row, PodRow) and (
            row.deletion or pod.metadata.uid not in ("", row.uid) or is_held(row, pod, self._tables.states)
        )
        if row and waits and len(wire.encode(row)) + len(wire.encode(pod)) > VALUE_BYTES_MAX:
            return Refusal("Busy", "is too large to wait beside the pod that has its name")
        return None

    def _put_pod(self, pod: Pod, source: str, revision: bytes = b"", *, released: bool = False) -> None:
        old = self._tables.pods.get(pod.key)
        if source != CLOUD:
            pod = self._complete(pod, old)
        after = Successor(source, pod, revision)
        if old is None:
            row = PodRow(pod.metadata.uid, source, pod, revision=revision, waiting=waits_anew(pod, source))
        elif old.deletion:
            other = source == CLOUD and pod.metadata.uid != old.uid  # then the API server has dropped the old one
            row = structs.replace(old, successor=after, released=old.released or other)
        elif pod.metadata.uid != old.uid:
            row = structs.replace(old, deletion=self._deletion(old), successor=after, released=True, held=None)
        elif not released and is_held(old, pod, self._tables.states):
            row = structs.replace(old, held=pod, revision=revision)
        elif old.pod == pod:
            row = structs.replace(old, source=source, revision=revision, held=None)
        elif self._starts_over(old, pod):
            row = structs.replace(old, deletion=self._deletion(old), successor=after, revision=revision, held=None)
        else:
            generation = old.generation + (old.pod.spec != pod.spec)
            row = structs.replace(old, source=source, pod=pod, generation=generation, revision=revision, held=None)
            row = structs.replace(row, waiting=old.waiting and waits_anew(pod, source))
        if self._tables.put("pod", pod.key, row):
            self.changed[identity(pod)] = None

    def _deletion(self, row: PodRow) -> Deletion:
        return row.deletion or Deletion(row.pod.spec.termination_grace_period_seconds, self._desk.wall)

    def _complete(self, pod: Pod, old: PodRow | None) -> Pod:
        """The uid is stable by node, namespace and name; the time of creation is when the pod was first seen."""
        meta = pod.metadata
        old = old if old and old.source != CLOUD else None
        created = old.pod.metadata.creation_timestamp if old else rfc3339(self._desk.wall) or ""
        uid = old.uid if old else stable_uid(self._desk.node.name, meta.namespace, meta.name)
        return structs.replace(pod, metadata=structs.replace(meta, uid=uid, creation_timestamp=created))

    def _dated(self, obj: Plain) -> Plain:
        """The time of creation is when the object was first seen, here too."""
        row = self._row(identity(obj))
        known = row.object.metadata.creation_timestamp if row and not isinstance(row, PodRow) else ""
        created = known if row else rfc3339(self._desk.wall) or ""
        return structs.replace(obj, metadata=structs.replace(obj.metadata, creation_timestamp=created))

    def _starts_over(self, old: PodRow, pod: Pod) -> bool:
        """What has ended, or may not be restarted in a new sandbox, is replaced as a whole when its spec changes."""
        state = self._tables.states.get(old.uid)
        if old.pod.spec == pod.spec:
            return False
        if state and state.terminal:
            return old.source != CLOUD  # it stays ended: whoever made it makes another
        return pod.spec.restart_policy != "Always" and sandbox_hash(old.pod) != sandbox_hash(pod)

    def _demote(self, name: str, owner: str, winner: str) -> None:
        """A file that comes first in order takes an object over; the file that had it is told."""
        row = self._row(name)
        obj = row.pod if isinstance(row, PodRow) else row.object if row else None
        if obj is not None:
            self._shadowed.setdefault(name, {})[owner] = obj
        for folder, files in self._files.items():
            for path, file in files.items():
                if source_of(folder, path) == owner and name in file.keys:
                    why = f"is declared by {in_words(winner)} already, which wins"
                    files[path] = FileRow(
                        "",
                        [key for key in file.keys if key != name],
                        [*file.shadowed, name],
                        [*file.problems, FileProblemRow(0, name, why)],
                    )

    def _release(self, name: str, source: str) -> None:
        """`source` does not declare an object any more: it goes, or the next that declares it takes over."""
        self._shadowed.get(name, {}).pop(source, None)
        if self._row(name) is None:
            self._forget(name)
        if self._owner(name) != source:
            return
        kind, _, key = name.partition(" ")
        if kind == "Pod":
            self._end_pod(key, None)
        else:
            self._tables.delete(kind.lower(), key)
            self.changed[name] = None
        self._hand_on(name)
        self.freed = True

    def _forget(self, name: str) -> bool:
        """Delete an object whose row can't be read; True when there was one."""
        kind, _, key = name.partition(" ")
        aside = self._tables.aside.get((kind.lower(), key))
        if not self._tables.forget(kind.lower(), key):
            return False
        if kind != "Pod":
            self.changed[name] = None
        else:
            uid = aside.uid if aside else stable_uid(self._desk.node.name, *key.split("/", 1))
            self._tables.delete("podstate", uid)
        return True

    def _hand_on(self, name: str) -> None:
        """What nobody owns any more goes to the next that declares it."""
        others = self._shadowed.pop(name, {})
        for other in sorted(others, key=lambda one: (one == API, one)):
            refusal, _ = self._put(others[other], other)
            if not refusal:
                self._owns(name, other)

    def _owns(self, name: str, source: str) -> None:
        """A file has got the object that it had to leave to another so far."""
        for folder, files in self._files.items():
            for path, row in files.items():
                if source_of(folder, path) == source and name in row.shadowed:
                    problems = [one for one in row.problems if one.field != name]
                    shadowed = [one for one in row.shadowed if one != name]
                    digest = "" if problems or shadowed else self._told.get((folder, path), "")
                    files[path] = FileRow(digest, [*row.keys, name], shadowed, problems)

    def _end_pod(self, key: str, grace_s: int | None) -> None:
        row = self._tables.pods[key]
        grace = row.pod.spec.termination_grace_period_seconds if grace_s is None else max(grace_s, 0)
        if row.deletion:
            grace = min(grace, row.deletion.grace_s)
        since = row.deletion.since_ms if row.deletion else self._desk.wall
        self._tables.put("pod", key, structs.replace(row, deletion=Deletion(grace, since), successor=None))
        self.changed[f"Pod {key}"] = None
        self.freed = True

    def gone(self, key: str) -> bool:
        """Nothing is left of a deleted pod. True when another takes its place."""
        row = self._tables.pods[key]
        after = row.successor
        over = after is not None and after.pod.metadata.uid == row.uid
        self._tables.delete("podstate", row.uid)
        if row.source == CLOUD and not row.released and not over:
            self._tables.put("gone", row.uid, GoneRow(key, row.revision))
        self.freed = True
        if after is None:
            self._tables.delete("pod", key)
            return False
        new = PodRow(after.pod.metadata.uid, after.source, after.pod, revision=after.revision)
        new = structs.replace(new, waiting=not over and waits_anew(after.pod, after.source))
        if over:
            new = structs.replace(new, generation=row.generation + 1, incarnation=row.incarnation + 1)
        self._tables.put("pod", key, new)
        return True

    # --- the cloud -------------------------------------------------------------------------------

    def from_cloud(self, obj: Object, revision: bytes) -> Refusal | None:
        """Keep what the cloud wants here, or say why not."""
        name = identity(obj)
        owner = self._owner(name)
        if owner and owner != CLOUD:
            by = "was applied on the node itself" if owner == API else f"is declared by {in_words(owner)} on the node"
            return Refusal("Owned", f"{name} {by}, which keeps it")
        if refusal := self._refusal(obj, CLOUD):
            return structs.replace(refusal, message=f"{name}: {refusal.message}")
        if isinstance(obj, Pod):
            self._put_pod(obj, CLOUD, revision)
        elif self._tables.put(obj.kind.lower(), obj.key, _object_row(self._dated(obj), CLOUD, revision)):
            self.changed[name] = None
        return None

    def end_from_cloud(self, pod: Pod, revision: bytes) -> None:
        """The API server has begun to delete a pod that is here. A shorter grace than before hurries."""
        row = self._tables.pods[pod.key]
        asked = pod.metadata.deletion_grace_period_seconds
        grace = pod.spec.termination_grace_period_seconds if asked is None else max(asked, 0)
        deletion = Deletion(grace, row.deletion.since_ms if row.deletion else self._desk.wall)
        new = structs.replace(row, pod=pod, revision=revision, deletion=deletion, released=False)
        self._going_from_cloud(row, new)

    def drop_from_cloud(self, key: str) -> None:
        """The cloud has no such pod any more: it is stopped with the grace that it has, and nobody waits for it."""
        row = self._tables.pods[key]
        self._going_from_cloud(row, structs.replace(row, deletion=self._deletion(row), released=True))

    def _going_from_cloud(self, old: PodRow, new: PodRow) -> None:
        new = structs.replace(new, held=None)
        if new.successor and new.successor.pod.metadata.uid == new.uid:
            new = structs.replace(new, successor=None)
        if self._tables.put("pod", old.pod.key, new):
            self.changed[identity(old.pod)] = None
        self.freed = True
        self._hand_on(identity(old.pod))
        self._flush("", "")

    def let_go(self, key: str) -> bool:
        """Let a pod, or a change of it, go on that is held. False when there is nothing to let go."""
        row = self._tables.pods.get(key)
        if row is None or not is_waiting(row):
            return False
        if row.held:
            self._put_pod(row.held, CLOUD, row.revision, released=True)
        elif self._tables.put("pod", key, structs.replace(row, waiting=False)):
            self.changed[f"Pod {key}"] = None
        self.freed = True
        return True

    def drop_successor(self, key: str) -> None:
        """What was to take a pod's place is not wanted any more."""
        self._tables.put("pod", key, structs.replace(self._tables.pods[key], successor=None))
        self.changed[f"Pod {key}"] = None
        self.freed = True
        self._hand_on(f"Pod {key}")
        self._flush("", "")

    def release_from_cloud(self, name: str) -> None:
        """What is no pod, and not wanted here by the cloud any more."""
        self._release(name, CLOUD)
        self._flush("", "")

    # --- looking ---------------------------------------------------------------------------------

    def digests(self, folder: str) -> dict[str, str]:
        """Of the files that could be used: what could not is read again by each life, which may know more."""
        return {path: row.digest for path, row in self._files.get(folder, {}).items() if not row.problems}

    def files(self) -> dict[str, dict[str, FileRow]]:
        return self._files


def _key_bytes(*lists: list[str]) -> int:
    return sum(len(key) + 3 for keys in lists for key in keys)


def _fitting(files: dict[str, FileRow]) -> dict[str, FileRow]:
    """Of the problems as many as fit into a value; memory holds them all."""
    if sum(len(one.message) + len(one.field) for row in files.values() for one in row.problems) < KEYS_BYTES_MAX // 2:
        return dict(files)
    return {path: structs.replace(row, problems=[]) for path, row in files.items()}


def _object_row(obj: Plain, source: str, revision: bytes = b"") -> ObjectRow:
    shape: Any = wire.ROWS[obj.kind.lower()]
    row: ObjectRow = shape(source, obj, revision)
    return row
