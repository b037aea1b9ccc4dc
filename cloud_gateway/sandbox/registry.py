"""Creating, changing and deleting objects: what the store is told, and what the caller gets to see of it.

Each change is decided at once, against the newest state, with no wait in between; then the caller waits until it is
durable. So nobody needs to try again but those who name a resourceVersion that is no longer the newest.
"""

from __future__ import annotations

import calendar
import random
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.sandbox import kinds, patch, pods, status, validate
from cloud_gateway.sandbox.resources import Catalogue, Resource
from cloud_gateway.sandbox.status import Cause, Refused
from cloud_gateway.sandbox.store import Entry, Key, Store, Write

Json = dict[str, Any]

_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
SYSTEM_KEYS = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")


class Options(Struct, frozen=True):
    """Query parameters of a change. `validation`: Strict, Warn, or Ignore."""

    dry: bool = False
    validation: str = "Warn"


class Place(Struct, frozen=True):
    """What a request is about. `namespace` is empty for what has none."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def key(self) -> Key:
        return self.resource.storage, self.namespace if self.resource.namespaced else "", self.name


class Deletion(Struct, frozen=True):
    """DeleteOptions. `grace_s` None: what the object says."""

    grace_s: int | None = None
    uid: str = ""
    revision: str = ""
    dry: bool = False


class Done(Struct):
    """What became of a change: `thing` without kind and apiVersion. `write` is None when nothing was to be done or
    nothing should be done. `deleted`: the object is gone now."""

    thing: Json
    write: Write | None = None
    warnings: Sequence[str] = ()
    deleted: bool = False
    created: bool = False

    async def durable(self) -> Done:
        if self.write is not None:
            await self.write.done.wait()
        return self


class Registry:
    """`suffix` gives the five letters at the end of a generated name."""

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        *,
        wall_s: Callable[[], float] = time.time,
        suffix: Callable[[], str] | None = None,
    ) -> None:
        self.store = store
        self.catalogue = catalogue
        self.wall_s = wall_s
        self.suffix = suffix or (lambda: "".join(random.choices(_LETTERS, k=5)))  # noqa: S311 - a name, no secret

    def now(self, later_s: float = 0) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.wall_s() + later_s))

    def key(self, resource: Resource, namespace: str, name: str) -> Key:
        return resource.storage, namespace if resource.namespaced else "", name

    def latest(self, resource: Resource, namespace: str, name: str) -> Entry:
        entry = self.store.latest(self.key(resource, namespace, name))
        if entry is None:
            raise status.not_found(resource.name, resource.group, name)
        return entry

    # --- creation ---

    def create(self, resource: Resource, namespace: str, body: Json, options: Options = Options()) -> Done:  # noqa: B008
        thing, warnings = self._decoded(resource, body, options)
        self._name(thing["metadata"], namespace if resource.namespaced else "")
        kinds.before_create(resource, thing)
        thing, causes = kinds.shaped(resource, thing)
        name = thing["metadata"].get("name", "")
        if resource.namespaced:
            self._namespace_open(resource, namespace, name)
        if resource.storage == "pods":
            self._admit_pod(thing, namespace)
            causes = [*pods.check(thing), *causes]
        named = validate.metadata(thing["metadata"], namespace_name=resource.storage == "namespaces")
        self._refuse(resource, name, [*named, *causes])
        if self.store.latest(self.key(resource, namespace, name)) is not None:
            raise status.already_exists(resource.name, resource.group, name)
        if resource.storage == "customresourcedefinitions":
            kinds.establish(thing, self.catalogue.taken(thing), self.now())
        return self._put(resource, namespace, thing, options, warnings, created=True)

    def _decoded(self, resource: Resource, body: Json, options: Options) -> tuple[Json, list[str]]:
        thing, unknown = kinds.decode(resource, body)
        texts = [f'unknown field "{path}"' for path in unknown]
        if texts and options.validation == "Strict":
            raise status.bad_request(
                f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
                f"strict decoding error: {', '.join(texts)}"
            )
        thing["metadata"].pop("managedFields", None)
        thing["metadata"].pop("selfLink", None)
        return thing, texts if options.validation == "Warn" else []

    def _name(self, metadata: Json, namespace: str) -> None:
        """Give a new object its name and what only the server gives."""
        if metadata.get("resourceVersion"):
            raise status.bad_request("resourceVersion should not be set on objects to be created")
        _same_namespace(metadata, namespace)
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"][:58] + self.suffix()
        for key in SYSTEM_KEYS:
            metadata.pop(key, None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = self.now()

    def _namespace_open(self, resource: Resource, namespace: str, name: str) -> None:
        entry = self.store.latest(("namespaces", "", namespace))
        if entry is None:
            raise status.not_found("namespaces", "", namespace)
        if entry.fields.get("status.phase") == "Terminating":
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            message = f"namespace {namespace} is being terminated"
            causes = (Cause("metadata.namespace", message, "NamespaceTerminating"),)
            raise status.forbidden(resource.name, resource.group, name, why, causes)

    def _admit_pod(self, thing: Json, namespace: str) -> None:
        spec = thing["spec"]
        name = thing["metadata"].get("name", "")
        account: Json | None = None
        if pods.MIRROR not in (thing["metadata"].get("annotations") or {}):
            wanted = spec.setdefault("serviceAccountName", "default")
            spec["serviceAccount"] = wanted
            entry = self.store.latest(("serviceaccounts", namespace, wanted))
            if entry is None:
                why = f'error looking up service account {namespace}/{wanted}: serviceaccount "{wanted}" not found'
                raise status.forbidden("pods", "", name, why)
            account = entry.object()
        wanted = spec.get("priorityClassName", "")
        if wanted and wanted not in pods.PRIORITIES:
            raise status.forbidden("pods", "", name, f"no PriorityClass with name {wanted} was found")
        pods.admit(thing, account, self.suffix())

    def _refuse(self, resource: Resource, name: str, causes: Sequence[Cause]) -> None:
        if causes:
            raise status.invalid(resource.kind, resource.group, name, causes)

    def _put(
        self,
        resource: Resource,
        namespace: str,
        thing: Json,
        options: Options,
        warnings: Sequence[str] = (),
        *,
        created: bool = False,
    ) -> Done:
        if options.dry:
            return Done(thing, None, warnings, created=created)
        if len(msgspec.json.encode(thing)) > limits.SANDBOX_OBJECT_BYTES_MAX:
            raise Refused(413, "RequestEntityTooLarge", "etcdserver: request is too large")
        key = self.key(resource, namespace, thing["metadata"]["name"])
        return Done(thing, self.store.put(key, thing), warnings, created=created)

    # --- changes ---

    def replace(self, place: Place, body: Json, options: Options) -> Done:
        resource, namespace, name = place.resource, place.namespace, place.name
        metadata = body.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        if metadata.get("name", name) != name:
            raise status.bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
            )
        entry = self.store.latest(self.key(resource, namespace, name))
        if entry is None and resource.storage == "leases" and not metadata.get("resourceVersion"):
            return self.create(resource, namespace, body, options)
        entry = self.latest(resource, namespace, name)
        new, warnings = self._decoded(resource, body, options)
        new["metadata"].setdefault("name", name)
        _same_namespace(new["metadata"], namespace if resource.namespaced else "")
        old = entry.object()
        _same_uid(place, new["metadata"].get("uid"), old["metadata"]["uid"])
        if not resource.blind_update and not new["metadata"].get("resourceVersion"):
            why = "Invalid value: 0: must be specified for an update"
            self._refuse(resource, name, [Cause("metadata.resourceVersion", why)])
        return self._update(place, new, old, options, warnings)

    def patch(self, place: Place, content_type: str, body: Any, options: Options) -> Done:
        resource = place.resource
        entry = self.latest(resource, place.namespace, place.name)
        old = entry.object()
        whole = {"kind": resource.kind, "apiVersion": resource.api_version, **entry.object()}  # its own copy
        if resource.type == "EventsV1Event":
            whole = kinds.event_from_core(whole)
        patched = patch.apply(content_type, whole, body, resource.type)
        if not isinstance(patched.get("metadata"), dict):
            raise status.bad_request("the patched object has no metadata")
        new, warnings = self._decoded(resource, patched, options)
        return self._update(place, new, old, options, warnings)

    def _update(self, place: Place, new: Json, old: Json, options: Options, warnings: Sequence[str]) -> Done:
        """`new` is what the caller wants, decoded."""
        resource, namespace, subresource = place.resource, place.namespace, place.subresource
        name = old["metadata"]["name"]
        wanted = new["metadata"].get("resourceVersion")
        if wanted and wanted not in ("0", old["metadata"]["resourceVersion"]):
            raise status.conflict(resource.name, resource.group, name)
        for key in ("namespace", *SYSTEM_KEYS):
            if key in old["metadata"] and (key not in new["metadata"] or key == "generation"):
                new["metadata"][key] = old["metadata"][key]
        if "generation" not in old["metadata"]:
            new["metadata"].pop("generation", None)
        kinds.before_update(resource, new, old, subresource)
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        new, causes = kinds.shaped(resource, new)
        if resource.storage == "customresourcedefinitions" and subresource != "status":
            kinds.establish(new, self.catalogue.taken(new), self.now())
        changes = list(kinds.check_update(resource, new, old, subresource))
        named = () if changes else validate.metadata(new["metadata"])
        self._refuse(resource, name, [*changes, *named, *causes])
        if kinds.has_generation(resource) and kinds.changed_spec(resource, new, old):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if self._finished(resource, new, old):
            return self._remove(resource, namespace, new, dry=options.dry)
        if new == old:
            return Done(old, None, warnings)
        return self._put(resource, namespace, new, options, warnings)

    def _finished(self, resource: Resource, new: Json, old: Json) -> bool:
        """Whether this change takes away the last finalizer of an object that waits for just that."""
        metadata = new["metadata"]
        return bool(
            metadata.get("deletionTimestamp")
            and not metadata.get("finalizers")
            and not metadata.get("deletionGracePeriodSeconds")
            and old["metadata"].get("finalizers")
            and resource.storage != "namespaces"
        )

    def write(self, resource: Resource, namespace: str, thing: Json) -> Done:
        """For the server's own changes: stored as it is."""
        return self._put(resource, namespace, thing, Options())

    # --- deletion ---

    def delete(self, resource: Resource, namespace: str, name: str, how: Deletion = Deletion()) -> Done:  # noqa: B008
        thing = self.latest(resource, namespace, name).object()
        _preconditions(resource, thing["metadata"], how)
        if resource.storage == "namespaces":
            return self._terminate(resource, thing, how)
        if resource.storage == "pods":
            return self._delete_pod(resource, namespace, thing, how)
        metadata = thing["metadata"]
        if metadata.get("finalizers"):
            if metadata.get("deletionTimestamp"):
                return Done(thing)
            self._mark(metadata, 0)
            return self._put(resource, namespace, thing, Options(how.dry))
        return self._remove(resource, namespace, thing, dry=how.dry)

    def _mark(self, metadata: Json, grace_s: int) -> None:
        metadata["deletionTimestamp"] = self.now(grace_s)
        metadata["deletionGracePeriodSeconds"] = grace_s
        if metadata.get("generation"):
            metadata["generation"] += 1

    def _terminate(self, resource: Resource, thing: Json, how: Deletion) -> Done:
        metadata = thing["metadata"]
        if metadata["name"] in ("default", "kube-system", "kube-public"):
            raise status.forbidden("namespaces", "", metadata["name"], "this namespace may not be deleted")
        if metadata.get("deletionTimestamp"):
            return Done(thing)
        metadata["deletionTimestamp"] = self.now()
        thing["status"] = {**thing.get("status", {}), "phase": "Terminating"}
        return self._put(resource, "", thing, Options(how.dry))

    def _delete_pod(self, resource: Resource, namespace: str, thing: Json, how: Deletion) -> Done:
        """First it is told how long it has; only with no time left it is gone."""
        metadata, spec = thing["metadata"], thing["spec"]
        ended = (thing.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        grace_s = spec.get("terminationGracePeriodSeconds", 30) if how.grace_s is None else how.grace_s
        grace_s = 0 if not spec.get("nodeName") or ended else max(grace_s, 0) if grace_s >= 0 else 1
        if metadata.get("deletionTimestamp"):
            before_s = metadata.get("deletionGracePeriodSeconds", 0)
            if before_s == 0 and not metadata.get("finalizers") and grace_s == 0:
                return self._remove(resource, namespace, thing, dry=how.dry)
            if how.grace_s is None or grace_s >= before_s:
                return Done(thing)
            metadata["deletionTimestamp"] = _earlier(metadata["deletionTimestamp"], before_s - grace_s)
            metadata["deletionGracePeriodSeconds"] = grace_s
        else:
            self._mark(metadata, grace_s)
        done = self._put(resource, namespace, thing, Options(how.dry))
        if grace_s or metadata.get("finalizers"):
            return done
        return self._remove(resource, namespace, msgspec.json.decode(msgspec.json.encode(thing)), dry=how.dry)

    def _remove(self, resource: Resource, namespace: str, thing: Json, *, dry: bool) -> Done:
        if dry:
            return Done(thing, None, deleted=True)
        key = self.key(resource, namespace, thing["metadata"]["name"])
        return Done(thing, self.store.remove(key, thing), deleted=True)

    def forget(self, resource: Resource, thing: Json) -> Done:
        """For the server's own changes: gone at once."""
        return self._remove(resource, thing["metadata"].get("namespace", ""), thing, dry=False)

    # --- binding ---

    def bind(self, place: Place, body: Json, options: Options) -> Done:
        name = place.name
        thing = self.latest(place.resource, place.namespace, name).object()
        target = body.get("target") or {}
        if target.get("kind", "Node") not in ("Node", "Minion") or not target.get("name"):
            raise status.invalid("Binding", "", name, [validate.required("target.name")])
        if thing["metadata"].get("deletionTimestamp"):
            why = f"pod {name} is being deleted, cannot be assigned to a host"
            raise status.conflict("pods/binding", "", name, why)
        if node := thing["spec"].get("nodeName"):
            why = f'pod {name} is already assigned to node "{node}"'
            raise status.conflict("pods/binding", "", name, why)
        thing["spec"]["nodeName"] = target["name"]
        if given := (body.get("metadata") or {}).get("annotations"):
            thing["metadata"].setdefault("annotations", {}).update(given)
        scheduled = {
            "type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": self.now(),
        }  # fmt: skip
        set_condition(thing, scheduled)
        return self._put(place.resource, place.namespace, thing, options)


def set_condition(thing: Json, condition: Json) -> None:
    kept = [one for one in thing["status"].get("conditions") or () if one["type"] != condition["type"]]
    thing["status"]["conditions"] = [*kept, condition]


def _same_namespace(metadata: Json, namespace: str) -> None:
    if metadata.get("namespace", namespace) != namespace:
        raise status.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if namespace:
        metadata["namespace"] = namespace


def _same_uid(place: Place, wanted: str | None, uid: str) -> None:
    if wanted and wanted != uid:
        path = "/".join(part for part in place.key if part)
        why = (
            f"StorageError: invalid object, Code: 4, Key: /registry/{path}, ResourceVersion: 0, AdditionalErrorMsg: "
            f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"
        )
        raise status.conflict(place.resource.name, place.resource.group, place.name, why)


def _preconditions(resource: Resource, metadata: Json, how: Deletion) -> None:
    name = metadata["name"]
    if how.uid and how.uid != metadata["uid"]:
        why = (
            f"the UID in the precondition ({how.uid}) does not match the UID in record ({metadata['uid']}). The object "
            "might have been deleted and then recreated"
        )
        raise status.conflict(resource.name, resource.group, name, why)
    if how.revision and how.revision != metadata["resourceVersion"]:
        why = (
            f"the ResourceVersion in the precondition ({how.revision}) does not match the ResourceVersion in record "
            f"({metadata['resourceVersion']}). The object might have been modified"
        )
        raise status.conflict(resource.name, resource.group, name, why)


def _earlier(stamp: str, by_s: int) -> str:
    at = time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(calendar.timegm(at) - by_s))
