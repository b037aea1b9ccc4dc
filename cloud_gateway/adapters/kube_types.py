"""What the Kubernetes client talks about: resources, its errors, and what a follower is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from cloud_gateway import limits
from tinyedge.errors import BadInput, PeerError

Json = dict[str, Any]


class Resource(Struct, frozen=True):
    """A resource of the API. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Without a namespace: all of them. BadInput for a name that is none."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        for part in (namespace, name):
            if part in (".", "..") or "/" in part:
                raise BadInput(f"the name of a {self.kind}", part, "a name of Kubernetes")
        return "/" + "/".join(quote(part) for part in (*parts, self.plural, name, subresource) if part)


NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
PODS = Resource("", "v1", "pods", "Pod")
CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap")
SECRETS = Resource("", "v1", "secrets", "Secret")
SERVICES = Resource("", "v1", "services", "Service")
SERVICEACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
VOLUME_CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
VOLUMES = Resource("", "v1", "persistentvolumes", "PersistentVolume", namespaced=False)
EVENTS = Resource("", "v1", "events", "Event")
DEVICES = Resource("devices.kubeedge.io", "v1beta1", "devices", "Device")
DEVICE_MODELS = Resource("devices.kubeedge.io", "v1beta1", "devicemodels", "DeviceModel")
DEVICE_STATUSES = Resource("devices.kubeedge.io", "v1beta1", "devicestatuses", "DeviceStatus")
RULES = Resource("rules.kubeedge.io", "v1", "rules", "Rule")
RULE_ENDPOINTS = Resource("rules.kubeedge.io", "v1", "ruleendpoints", "RuleEndpoint")
LOCAL_RULES = Resource("rules.tinyedge.io", "v1alpha1", "localrules", "LocalRule")
NODE_UPGRADE_JOBS = Resource(
    "operations.kubeedge.io", "v1alpha2", "nodeupgradejobs", "NodeUpgradeJob", namespaced=False
)
IMAGE_PREPULL_JOBS = Resource(
    "operations.kubeedge.io", "v1alpha2", "imageprepulljobs", "ImagePrePullJob", namespaced=False
)
CONFIG_UPDATE_JOBS = Resource(
    "operations.kubeedge.io", "v1alpha2", "configupdatejobs", "ConfigUpdateJob", namespaced=False
)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False)


BY_PLURAL = {
    one.plural: one
    for one in (
        NODES,
        NAMESPACES,
        PODS,
        CONFIGMAPS,
        SECRETS,
        SERVICES,
        SERVICEACCOUNTS,
        VOLUME_CLAIMS,
        VOLUMES,
        EVENTS,
        DEVICES,
        DEVICE_MODELS,
        DEVICE_STATUSES,
        RULES,
        RULE_ENDPOINTS,
        LOCAL_RULES,
        NODE_UPGRADE_JOBS,
        IMAGE_PREPULL_JOBS,
        CONFIG_UPDATE_JOBS,
        LEASES,
        TOKEN_REVIEWS,
        ACCESS_REVIEWS,
    )
}

UNREACHABLE = "Unreachable"


class KubeError(PeerError):
    """The API server refused, failed, or was not reached. `status` is the HTTP status, 0 when there was no answer;
    `reason` is the API's word, such as `NotFound`; `retry_after_s` what it asked for, else 0; `causes` name fields."""

    def __init__(
        self,
        what: str,
        why: str = "",
        remedy: str = "",
        *,
        status: int = 0,
        reason: str = "",
        message: str = "",
        retry_after_s: float = 0.0,
        causes: tuple[Json, ...] = (),
    ) -> None:
        retryable = status in (0, 408, 409, 410, 429) or status >= 500
        super().__init__(what, why, remedy, retryable=retryable)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.causes = causes

    @property
    def unreachable(self) -> bool:
        """There was no answer: whether anything was done is not known."""
        return self.reason == UNREACHABLE

    @property
    def unauthorized(self) -> bool:
        return self.status == 401

    @property
    def forbidden(self) -> bool:
        return self.status == 403

    @property
    def not_found(self) -> bool:
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """Somebody else has written, or a precondition (uid, resourceVersion) does not hold."""
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def exists(self) -> bool:
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def expired(self) -> bool:
        """The resourceVersion or the continue token is too old: list again."""
        return self.status == 410

    @property
    def invalid(self) -> bool:
        """The object is refused; also a patch with a wrong metadata.uid is answered so."""
        return self.status == 422

    @property
    def throttled(self) -> bool:
        return self.status == 429

    @property
    def server_failed(self) -> bool:
        return self.status >= 500


class _Status(Struct):
    """metav1.Status, as far as it is used."""

    status: str = ""
    reason: str = ""
    message: str = ""
    code: int = 0
    details: Json | None = None


def error_of(what: str, status: int, body: bytes, retry_after_s: float = 0.0) -> KubeError:
    """The error that an answer is. `what` says what was tried, such as `get pods default/web`."""
    try:
        told = msgspec.json.decode(body, type=_Status)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = body[: limits.KUBE_ERROR_TEXT_CHARS].decode("utf-8", "replace").strip()
        told = _Status(message=text or f"HTTP status {status}")
    details = told.details or {}
    causes = details.get("causes")
    if not retry_after_s and status in (429, 503):
        retry_after_s = _seconds(details.get("retryAfterSeconds"))
    return KubeError(
        f"{what}: {told.reason or status}",
        told.message[: limits.KUBE_ERROR_TEXT_CHARS],
        _REMEDIES.get(status, ""),
        status=status,
        reason=told.reason,
        message=told.message,
        retry_after_s=retry_after_s,
        causes=tuple(one for one in causes if isinstance(one, dict)) if isinstance(causes, list) else (),
    )


_REMEDIES = {
    401: "are the credentials still valid?",
    403: "give the account the right to do this: packaging/kubernetes/rbac.yaml lists what is needed",
}


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and value > 0 else 0.0


class ListStart(Struct, frozen=True):
    """A list begins (also: begins anew, in the middle of one). What was named before no longer counts as named."""


class Listed(Struct, frozen=True):
    """A page of the list."""

    objects: list[Json]


class ListEnd(Struct, frozen=True):
    """The list is whole: what it has not named since its start is gone."""


class Seen(Struct, frozen=True):
    """An object was added or changed."""

    object: Json


class Gone(Struct, frozen=True):
    """An object was deleted, or no longer matches the selector. Its last state."""

    object: Json


Change = ListStart | Listed | ListEnd | Seen | Gone
Send = Callable[[Change], Awaitable[None]]
Trim = Callable[[Json], Json]


class Page(Struct, frozen=True):
    """Some of the objects of a list. `first`: the list begins here; also again, when the API server had forgotten the
    list in its middle, and what came before is void. `last`: nothing follows."""

    objects: list[Json]
    first: bool
    last: bool
    resource_version: str
