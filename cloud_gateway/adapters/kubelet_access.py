"""Who asks a kubelet endpoint, and whether they may: the API server decides both.

A certificate under the cluster's client CA, else a token that it reviews; then a SubjectAccessReview. Answers are kept
for as long as a kubelet keeps them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_types import ACCESS_REVIEWS, TOKEN_REVIEWS, KubeError

Json = dict[str, Any]
Attributes = tuple[tuple[str, str], ...]
TOKEN_S = 120  # as a kubelet: authentication.webhook.cacheTTL
ALLOWED_S = 300  # authorization.webhook.cacheAuthorizedTTL
DENIED_S = 30


class Caller(Struct, frozen=True):
    """`extra` may narrow what a token is good for, so it goes along when rights are asked for."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Access:
    """`now_s`: a monotonic clock."""

    def __init__(self, kube: Kube, *, now_s: Callable[[], float]) -> None:
        self._kube = kube
        self._now_s = now_s
        self._tokens: dict[bytes, tuple[float, Caller | None]] = {}
        self._decisions: dict[tuple[Caller, Attributes], tuple[float, bool]] = {}

    async def authenticate(self, certificate: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Caller | None:
        """None: nobody we know. `certificate` as `ssl` tells of it, once it was verified."""
        if certificate:
            return _of_certificate(certificate)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return None
        key = hashlib.sha256(token.strip().encode()).digest()
        known = self._tokens.get(key)
        if known and known[0] > self._now_s():
            return known[1]
        caller = await self._review(token.strip())
        _keep(self._tokens, key, (self._now_s() + (TOKEN_S if caller else DENIED_S), caller))
        return caller

    async def _review(self, token: str) -> Caller | None:
        body = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "spec": {"token": token},
        }
        status = (await self._kube.create(TOKEN_REVIEWS, body)).get("status") or {}
        user = status.get("user") or {}
        if not status.get("authenticated") or not user.get("username"):
            return None
        extra = tuple((key, tuple(values)) for key, values in sorted((user.get("extra") or {}).items()))
        return Caller(user["username"], tuple(user.get("groups") or ()), user.get("uid") or "", extra)

    async def allowed(self, caller: Caller, node: str, access: Sequence[tuple[str, str]]) -> bool:
        """Whether one of these (verb, subresource of nodes) is. KubeError when nobody can say."""
        for verb, subresource in access:
            asked = {"verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": node}
            if await self.may(caller, asked):
                return True
        return False

    async def may(self, caller: Caller, attributes: Mapping[str, str]) -> bool:
        """Whether the caller may do what these resourceAttributes say. KubeError when nobody can say."""
        key = (caller, tuple(attributes.items()))
        known = self._decisions.get(key)
        if known and known[0] > self._now_s():
            return known[1]
        spec: Json = {"user": caller.name, "groups": list(caller.groups), "resourceAttributes": dict(attributes)}
        if caller.uid:
            spec["uid"] = caller.uid
        if caller.extra:
            spec["extra"] = {key: list(values) for key, values in caller.extra}
        body = {"apiVersion": ACCESS_REVIEWS.api_version, "kind": ACCESS_REVIEWS.kind, "spec": spec}
        try:
            status = (await self._kube.create(ACCESS_REVIEWS, body)).get("status") or {}
        except KubeError as error:
            if error.forbidden or error.invalid:
                return False
            raise
        allowed = bool(status.get("allowed")) and not status.get("denied")
        _keep(self._decisions, key, (self._now_s() + (ALLOWED_S if allowed else DENIED_S), allowed))
        return allowed


def _of_certificate(certificate: Mapping[str, Any]) -> Caller | None:
    """The subject's common name is the user, its organisations are the groups, as in Kubernetes."""
    pairs = [pair for part in certificate.get("subject", ()) for pair in part]
    name = next((value for key, value in pairs if key == "commonName"), "")
    groups = tuple(value for key, value in pairs if key == "organizationName")
    return Caller(name, (*groups, "system:authenticated")) if name else None


def _keep(cache: dict[Any, Any], key: Any, value: Any) -> None:
    if len(cache) >= limits.KUBELET_CACHE_MAX:
        del cache[next(iter(cache))]
    cache[key] = value
