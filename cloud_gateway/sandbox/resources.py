"""Which resources there are: the built-in ones, and those that CustomResourceDefinitions add."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

Json = dict[str, Any]

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
CUSTOM_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
STATUS_VERBS = ("get", "patch", "update")
PROXY_VERBS = ("create", "delete", "get", "patch", "update")


class Sub(Struct, frozen=True):
    """A subresource. `group` and `version` only where its kind is of another group."""

    name: str
    kind: str
    verbs: tuple[str, ...]
    group: str = ""
    version: str = ""


class Custom(Struct, frozen=True):
    """What a CustomResourceDefinition says about one of its versions."""

    schema: Json
    columns: list[Json]
    status: bool
    preserve: bool  # no schema to prune by


class Resource(Struct, frozen=True):
    """One resource in one version. `storage` is where its objects are kept, the same for all versions; `type` is its
    type in typed.py, empty for custom ones."""

    group: str
    version: str
    name: str
    singular: str
    kind: str
    namespaced: bool
    type: str = ""
    verbs: tuple[str, ...] = VERBS
    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subs: tuple[Sub, ...] = ()
    storage: str = ""
    custom: Custom | None = None
    list_kind: str = ""
    returns_deleted: bool = False
    blind_update: bool = True  # a PUT may leave out the resourceVersion

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def head(self) -> bytes:
        """What an object's JSON begins with, instead of its `{`."""
        return f'{{"kind":"{self.kind}","apiVersion":"{self.api_version}",'.encode()

    @property
    def described(self) -> str:
        """As messages name it."""
        return f"{self.group}/{self.version}, Resource={self.name}"

    def sub(self, name: str) -> Sub | None:
        return next((sub for sub in self.subs if sub.name == name), None)

    def storage_hash(self) -> str:
        digest = hashlib.sha256(f"{self.group}/{self.version}/{self.kind}".encode()).digest()
        return base64.b64encode(digest[:8]).decode()


def _status(kind: str) -> Sub:
    return Sub("status", kind, STATUS_VERBS)


def _core(name: str, kind: str, **more: Any) -> Resource:
    defaults: Json = {"singular": kind.lower(), "namespaced": True, "type": kind, "storage": name}
    return Resource(group="", version="v1", name=name, kind=kind, **(defaults | more))


_POD_SUBS = (
    Sub("attach", "PodAttachOptions", ("create", "get")),
    Sub("binding", "Binding", ("create",)),
    Sub("ephemeralcontainers", "Pod", STATUS_VERBS),
    Sub("eviction", "Eviction", ("create",), "policy", "v1"),
    Sub("exec", "PodExecOptions", ("create", "get")),
    Sub("log", "Pod", ("get",)),
    Sub("portforward", "PodPortForwardOptions", ("create", "get")),
    _status("Pod"),
)


def _review(group: str, name: str, kind: str, *, namespaced: bool = False) -> Resource:
    return Resource(group, "v1", name, kind.lower(), kind, namespaced, verbs=("create",))


BUILT_IN = (
    _core("bindings", "Binding", verbs=("create",)),
    _core("configmaps", "ConfigMap", short=("cm",)),
    _core("events", "Event", short=("ev",)),
    _core(
        "namespaces",
        "Namespace",
        namespaced=False,
        short=("ns",),
        verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
        subs=(Sub("finalize", "Namespace", ("update",)), _status("Namespace")),
        returns_deleted=True,
    ),
    _core(
        "nodes",
        "Node",
        namespaced=False,
        short=("no",),
        subs=(Sub("proxy", "NodeProxyOptions", PROXY_VERBS), _status("Node")),
    ),
    _core(
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        short=("pvc",),
        subs=(_status("PersistentVolumeClaim"),),
        returns_deleted=True,
    ),
    _core(
        "persistentvolumes",
        "PersistentVolume",
        namespaced=False,
        short=("pv",),
        subs=(_status("PersistentVolume"),),
        returns_deleted=True,
    ),
    _core("pods", "Pod", short=("po",), categories=("all",), subs=_POD_SUBS, returns_deleted=True),
    _core("secrets", "Secret"),
    _core(
        "serviceaccounts",
        "ServiceAccount",
        short=("sa",),
        subs=(Sub("token", "TokenRequest", ("create",), "authentication.k8s.io", "v1"),),
        returns_deleted=True,
    ),
    Resource(
        group="events.k8s.io",
        version="v1",
        name="events",
        singular="event",
        kind="Event",
        namespaced=True,
        type="EventsV1Event",
        short=("ev",),
        storage="events",
    ),
    _review("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
    _review("authentication.k8s.io", "tokenreviews", "TokenReview"),
    _review("authorization.k8s.io", "localsubjectaccessreviews", "LocalSubjectAccessReview", namespaced=True),
    _review("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    _review("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview"),
    Resource(
        group="apiextensions.k8s.io",
        version="v1",
        name="customresourcedefinitions",
        singular="customresourcedefinition",
        kind="CustomResourceDefinition",
        namespaced=False,
        type="CustomResourceDefinition",
        short=("crd", "crds"),
        categories=("api-extensions",),
        subs=(_status("CustomResourceDefinition"),),
        storage="customresourcedefinitions",
        blind_update=False,
    ),
    Resource(
        group="coordination.k8s.io",
        version="v1",
        name="leases",
        singular="lease",
        kind="Lease",
        namespaced=True,
        type="Lease",
        storage="leases",
        blind_update=False,
    ),
)


class Catalogue:
    """All resources at hand. `change` is told of every stored or removed CustomResourceDefinition."""

    def __init__(self) -> None:
        self._built_in = {(one.group, one.version, one.name): one for one in BUILT_IN}
        self._custom: dict[str, list[Resource]] = {}  # by the name of the definition
        self._all = dict(self._built_in)

    def find(self, group: str, version: str, name: str) -> Resource | None:
        return self._all.get((group, version, name))

    def of_storage(self, storage: str) -> Resource | None:
        """Any version of it."""
        return next((one for one in self._all.values() if one.storage == storage), None)

    def all(self) -> Iterable[Resource]:
        return self._all.values()

    def groups(self) -> dict[str, list[str]]:
        """Group → versions, the preferred one first; without the core group."""
        found: dict[str, list[str]] = {}
        for one in self._all.values():
            if one.group and one.version not in found.setdefault(one.group, []):
                found[one.group].append(one.version)
        return {
            group: versions if len(versions) == 1 else sorted(versions, key=_preference)
            for group, versions in found.items()
        }

    def taken(self, crd: Json) -> str:
        """Why the names of a definition can't be had, or the empty text."""
        group, names = crd["spec"]["group"], crd["spec"]["names"]
        for one in self._all.values():
            if one.group == group and one not in self._custom.get(crd["metadata"]["name"], ()):
                if one.name == names["plural"]:
                    return f'"{names["plural"]}" is already in use'
                if one.kind == names["kind"]:
                    return f'"{names["kind"]}" is already in use'
        return ""

    def change(self, name: str, crd: Json | None) -> list[Resource]:
        """Serve what the definition declares now (None: nothing any more). What it declared before is returned."""
        before = self._custom.pop(name, [])
        self._gather()
        if crd is not None and crd["metadata"].get("deletionTimestamp"):
            self._custom[name] = before  # served until the last of its objects is gone
        elif crd is not None and not self.taken(crd):
            self._custom[name] = list(_declared(crd))
        self._gather()
        return before

    def _gather(self) -> None:
        self._all = dict(self._built_in)
        for resources in self._custom.values():
            self._all.update({(one.group, one.version, one.name): one for one in resources})


def _declared(crd: Json) -> Iterable[Resource]:
    spec = crd["spec"]
    names = spec["names"]
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        subs = version.get("subresources") or {}
        schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
        custom = Custom(
            schema,
            version.get("additionalPrinterColumns") or [],
            "status" in subs,
            bool(schema.get("x-kubernetes-preserve-unknown-fields") or spec.get("preserveUnknownFields")),
        )
        yield Resource(
            spec["group"],
            version["name"],
            names["plural"],
            names.get("singular") or names["kind"].lower(),
            names["kind"],
            spec["scope"] == "Namespaced",
            verbs=CUSTOM_VERBS,
            short=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            subs=(_status(names["kind"]),) if custom.status else (),
            storage=f"{spec['group']}/{names['plural']}",
            custom=custom,
            list_kind=names.get("listKind") or f"{names['kind']}List",
            blind_update=False,
        )


def _preference(version: str) -> tuple[int, int, int, str]:
    """v10 before v2 before v1 before v1beta2 before v1alpha1 before anything else."""
    head, _, tail = version.removeprefix("v").partition("beta")
    if head.isdigit() and not tail and version.startswith("v"):
        return 0, -int(head), 0, ""
    if head.isdigit() and tail.isdigit():
        return 1, -int(head), -int(tail), ""
    head, _, tail = version.removeprefix("v").partition("alpha")
    if head.isdigit() and tail.isdigit():
        return 2, -int(head), -int(tail), ""
    return 3, 0, 0, version
