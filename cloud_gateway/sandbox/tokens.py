"""Who asks, and what he may: service-account tokens (JWT, ES256), the admin's token, and the reviews of both.

There are no RBAC objects in the sandbox. The rule instead: whoever is in the group system:masters, and the gateway's
own service account, may do everything; every other service account may only ask who it is and what it may; nobody else
is anybody. So a pod's token is good for what is asked of it most: to prove to somebody whose it is.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from msgspec import Struct

from cloud_gateway.sandbox.certs import read_private, write_private
from cloud_gateway.sandbox.status import Cause, Refused, bad_request, conflict, invalid, not_found
from tinyedge.errors import WorldError

Json = dict[str, Any]

API_AUDIENCE = "https://kubernetes.default.svc"
MASTERS = "system:masters"
AUTHENTICATED = "system:authenticated"
TRUSTED = frozenset({"system:serviceaccount:tinyedge:tinyedge-gateway"})

DEFAULT_S, LEAST_S, MOST_S = 3600, 600, 1 << 32
_TOKEN_CHARS_MAX = 16 * 1024
_KNOWN_MAX = 4096  # tokens whose signature was checked
_GROUP = "authentication.k8s.io"
_EXTRA = "authentication.kubernetes.io/"
_BINDABLE = {"Pod": "pods", "Secret": "secrets", "Node": "nodes"}
_INVALID = "invalid bearer token"

Find = Callable[[str, str, str], Json | None]  # (plural, namespace or "", name) → the object as it is now


class User(Struct, frozen=True):
    """As in TokenReview."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, list[str]] = {}

    def shown(self) -> Json:
        """As `status.user` says it."""
        found: Json = {"username": self.username}
        if self.uid:
            found["uid"] = self.uid
        found["groups"] = list(self.groups)
        return {**found, "extra": self.extra} if self.extra else found


ADMIN = User("admin", "admin-uid", (MASTERS, AUTHENTICATED))


class _Named(Struct, frozen=True):
    name: str
    uid: str


class _Bound(Struct, frozen=True, omit_defaults=True):
    namespace: str
    serviceaccount: _Named
    pod: _Named | None = None
    secret: _Named | None = None
    node: _Named | None = None


class _Claims(Struct, frozen=True, rename={"bound": "kubernetes.io"}):
    aud: tuple[str, ...]
    exp: int
    iat: int
    iss: str
    jti: str
    bound: _Bound
    nbf: int
    sub: str


class Tokens:
    """`folder` holds the key (`tokens.pem`) and the admin's token (`admin.token`), made once, 0600. `wall_s`: the wall
    clock, unix seconds. Raises WorldError when they can't be kept."""

    def __init__(self, folder: Path, *, wall_s: Callable[[], float]) -> None:
        self._wall_s = wall_s
        self._known: OrderedDict[str, _Claims] = OrderedDict()
        try:
            self._key = _key(folder / "tokens.pem")
            self.admin_token = _admin(folder / "admin.token")
        except OSError as error:
            raise WorldError(f"the sandbox's tokens can't be kept in {folder}", str(error)) from None

    # --- tokens in ------------------------------------------------------------------------------------

    def authenticate(self, token: str, find: Find, audiences: Sequence[str] = (API_AUDIENCE,)) -> User | None:
        """Whose token it is; None: nobody's (malformed, expired, for others, or what it is bound to is gone)."""
        known = self._meant_for(token, find, audiences)
        return known[0] if known else None

    def _meant_for(self, token: str, find: Find, audiences: Sequence[str]) -> tuple[User, list[str]] | None:
        """And for which of the audiences."""
        if hmac.compare_digest(token.encode("utf-8", "replace"), self.admin_token.encode()):
            return (ADMIN, [API_AUDIENCE]) if API_AUDIENCE in audiences else None
        claims = self._claims(token)
        if claims is None or not claims.nbf - 60 <= self._wall_s() < claims.exp or not _still_there(claims.bound, find):
            return None
        common = [one for one in claims.aud if one in audiences]
        return (_user(claims), common) if common else None

    def _claims(self, token: str) -> _Claims | None:
        """What we once signed; whether it still counts is not looked at."""
        if token in self._known:
            self._known.move_to_end(token)
            return self._known[token]
        claims = _verified(token, self._key.public_key()) if len(token) <= _TOKEN_CHARS_MAX else None
        if claims is not None:
            self._known[token] = claims
            if len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
        return claims

    def review(self, body: Json, find: Find) -> Json:
        """The answer (201) to a TokenReview. Raises Refused."""
        spec = body.get("spec") or {}
        token = spec.get("token")
        if not token or not isinstance(token, str):
            raise bad_request("token is required for TokenReview in authentication")
        asked = _audiences(spec)
        known = self._meant_for(token, find, asked)
        if known:
            user, audiences = known
            status = {"authenticated": True, "user": user.shown(), "audiences": audiences}
        else:
            status = {"user": {}, "error": self._why_not(token, asked)}
        return _answer("TokenReview", f"{_GROUP}/v1", body, spec, status)

    def _why_not(self, token: str, asked: Sequence[str]) -> str:
        claims = self._claims(token)
        if claims is None:
            return _INVALID
        if not set(asked) & set(claims.aud):
            mine, wanted = (" ".join(f'"{one}"' for one in some) for some in (claims.aud, asked))
            return f"[{_INVALID}, token audiences [{mine}] is invalid for the target audiences [{wanted}]]"
        return f"[{_INVALID}, service account token has expired]" if self._wall_s() >= claims.exp else _INVALID

    # --- tokens out -----------------------------------------------------------------------------------

    def request(self, body: Json, account: Json, find: Find) -> Json:
        """The answer (201) to a TokenRequest `body` for the ServiceAccount object `account`. Raises Refused."""
        metadata = account["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        spec = body.get("spec") or {}
        seconds = spec.get("expirationSeconds", DEFAULT_S) or DEFAULT_S
        _check_life(seconds, name)
        audiences = _audiences(spec)
        reference = spec.get("boundObjectRef")
        bound = _Bound(namespace, _Named(name, metadata.get("uid", "")), **_bound(reference, account, find))
        now = int(self._wall_s())
        token = self.issue(bound, audiences, now, now + seconds)
        return {
            "kind": "TokenRequest",
            "apiVersion": f"{_GROUP}/v1",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": _stamp(now),
            },
            "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": reference},
            "status": {"token": token, "expirationTimestamp": _stamp(now + seconds)},
        }

    def issue(self, bound: _Bound, audiences: Sequence[str], now_s: int, end_s: int) -> str:
        subject = f"system:serviceaccount:{bound.namespace}:{bound.serviceaccount.name}"
        claims = _Claims(tuple(audiences), end_s, now_s, API_AUDIENCE, str(uuid.uuid4()), bound, now_s, subject)
        signed = f"{_HEADER}.{_encoded(msgspec.json.encode(claims))}"
        r, s = utils.decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_encoded(r.to_bytes(32) + s.to_bytes(32))}"


# --- JWT ---


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


_HEADER = _encoded(b'{"alg":"ES256","typ":"JWT"}')


def _verified(token: str, key: ec.EllipticCurvePublicKey) -> _Claims | None:
    """Only tokens of the very form in which we sign them: no algorithm is taken from the token."""
    signed, _, signature = token.rpartition(".")
    header, _, payload = signed.partition(".")
    if header != _HEADER:
        return None
    try:
        raw = _decoded(signature)
        if len(raw) != 64:
            return None
        pair = utils.encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
        key.verify(pair, signed.encode(), ec.ECDSA(hashes.SHA256()))
        return msgspec.json.decode(_decoded(payload), type=_Claims)
    except (InvalidSignature, binascii.Error, ValueError, msgspec.MsgspecError):
        return None


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        found = serialization.load_pem_private_key(read_private(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        found = None
    if isinstance(found, ec.EllipticCurvePrivateKey) and isinstance(found.curve, ec.SECP256R1):
        return found
    key = ec.generate_private_key(ec.SECP256R1())
    pkcs8 = serialization.PrivateFormat.PKCS8
    write_private(path, key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))
    return key


def _admin(path: Path) -> str:
    found = read_private(path).decode("ascii", "replace").strip()
    if len(found) >= 32 and found.isascii() and found.isprintable():
        return found
    token = secrets.token_urlsafe(32)
    write_private(path, token.encode())
    return token


# --- service accounts ---


def _user(claims: _Claims) -> User:
    bound = claims.bound
    extra = {f"{_EXTRA}credential-id": [f"JTI={claims.jti}"]}
    for kind, one in (("node", bound.node), ("pod", bound.pod)):
        if one is not None:
            extra |= {f"{_EXTRA}{kind}-name": [one.name], f"{_EXTRA}{kind}-uid": [one.uid]}
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{bound.namespace}", AUTHENTICATED)
    return User(claims.sub, bound.serviceaccount.uid, groups, extra)


def _still_there(bound: _Bound, find: Find) -> bool:
    """A token ends with its account, and with the pod or the secret that it is bound to."""
    for plural, one in (("serviceaccounts", bound.serviceaccount), ("pods", bound.pod), ("secrets", bound.secret)):
        if one is not None:
            found = find(plural, bound.namespace, one.name)
            if found is None or found["metadata"].get("uid", "") != one.uid:
                return False
    return True


def _audiences(spec: Json) -> list[str]:
    found = spec.get("audiences") or [API_AUDIENCE]
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise bad_request("json: spec.audiences must be a list of texts")
    return found


def _check_life(seconds: object, name: str) -> None:
    text = ""
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise bad_request(
            "json: cannot unmarshal into Go struct field TokenRequestSpec.spec.expirationSeconds of type int64"
        )
    if seconds < LEAST_S:
        text = "may not specify a duration less than 10 minutes"
    elif seconds > MOST_S:
        text = "may not specify a duration larger than 2^32 seconds"
    if text:
        cause = Cause("spec.expirationSeconds", f"Invalid value: {seconds}: {text}")
        raise invalid("TokenRequest", _GROUP, name, [cause])


def _bound(reference: Json | None, account: Json, find: Find) -> dict[str, _Named]:
    if not reference:
        return {}
    kind, name, uid = (reference.get(key) or "" for key in ("kind", "name", "uid"))
    namespace = account["metadata"]["namespace"]
    plural = _BINDABLE.get(kind)
    if plural is None or (reference.get("apiVersion") or "v1") != "v1":
        raise bad_request(f"cannot bind token to object of type /{reference.get('apiVersion') or 'v1'}, Kind={kind}")
    found = find(plural, "" if kind == "Node" else namespace, name)
    if found is None:
        raise not_found(plural, "", name)
    if kind == "Pod":
        _same_account(found, account)
    have = found["metadata"].get("uid", "")
    if uid and uid != have:
        why = (
            f"the UID in the bound object reference ({uid}) does not match the UID in record. "
            "The object might have been deleted and then recreated"
        )
        raise conflict(plural, "", name, why)
    bound = {kind.lower(): _Named(name, have)}
    node: str = ((found.get("spec") or {}).get("nodeName") or "") if kind == "Pod" else ""
    there = find("nodes", "", node) if node else None
    if there is not None:
        bound["node"] = _Named(node, there["metadata"].get("uid", ""))
    return bound


def _same_account(pod: Json, account: Json) -> None:
    name = account["metadata"]["name"]
    if (pod["spec"].get("serviceAccountName") or "default") != name:
        raise bad_request(
            f'cannot bind token for serviceaccount "{name}" to pod running with different serviceaccount name.'
        )


# --- what they may ---

_SELF = {("authorization.k8s.io", "selfsubjectaccessreviews"), (_GROUP, "selfsubjectreviews")}
_FOR_ALL = ("/api", "/apis", "/version", "/healthz", "/livez", "/readyz", "/openapi")


def allowed(username: str, groups: Sequence[str]) -> bool:
    """May everything, or (almost) nothing."""
    return MASTERS in groups or username in TRUSTED


def may(user: User, verb: str, plural: str, group: str) -> bool:
    """Of a resource."""
    return allowed(user.username, user.groups) or (verb == "create" and (group, plural) in _SELF)


def may_read(user: User, path: str) -> bool:
    """Of a path that is no resource: discovery and health are for all that are known."""
    return allowed(user.username, user.groups) or any(path == one or path.startswith(f"{one}/") for one in _FOR_ALL)


def denied(user: User, verb: str, resource: str, group: str, *, namespace: str = "", name: str = "") -> Refused:
    """403 in Kubernetes' words. `resource` with its subresource: `pods/log`."""
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    named = f' "{name}"' if name else ""
    plural = resource.partition("/")[0]
    shown = f"{plural}.{group}" if group else plural
    why = f'User "{user.username}" cannot {verb} resource "{resource}" in API group "{group}" {where}'
    details: Json = {"name": name} if name else {}
    details |= {"group": group} if group else {}
    return Refused(403, "Forbidden", f"{shown}{named} is forbidden: {why}", {**details, "kind": plural})


def access_review(body: Json, asker: User) -> Json:
    """The answer (201) to a SubjectAccessReview, LocalSubjectAccessReview or SelfSubjectAccessReview
    (authorization.k8s.io), or a SelfSubjectReview (authentication.k8s.io), by its kind. Raises Refused."""
    kind = body.get("kind", "")
    if kind == "SelfSubjectReview":
        return _answer(kind, f"{_GROUP}/v1", body, None, {"userInfo": asker.shown()})
    spec = body.get("spec") or {}
    causes = _wrong(kind, spec)
    if causes:
        raise invalid(kind, "authorization.k8s.io", "", causes)
    subject = asker if kind == "SelfSubjectAccessReview" else _subject(spec)
    status: Json = {"allowed": _reviewed(subject, spec)}
    if not status["allowed"]:
        status["reason"] = "the sandbox has no RBAC: only the group system:masters and the gateway may do this"
    return _answer(kind, "authorization.k8s.io/v1", body, spec, status)


def _subject(spec: Json) -> User:
    return User(spec.get("user") or "", groups=tuple(spec.get("groups") or ()))


def _reviewed(user: User, spec: Json) -> bool:
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if resource is not None:
        return may(user, resource.get("verb", ""), resource.get("resource", ""), resource.get("group", ""))
    return (
        may_read(user, (path or {}).get("path", ""))
        if (path or {}).get("verb") == "get"
        else allowed(user.username, user.groups)
    )


def _wrong(kind: str, spec: Mapping[str, Any]) -> list[Cause]:
    causes = []
    if (spec.get("resourceAttributes") is None) == (spec.get("nonResourceAttributes") is None):
        text = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        causes.append(Cause("spec.resourceAttributes", f"Invalid value: null: {text}"))
    if kind != "SelfSubjectAccessReview" and not spec.get("user") and not spec.get("groups"):
        causes.append(Cause("spec.user", 'Invalid value: "": at least one of user or group must be specified'))
    return causes


def _answer(kind: str, api_version: str, body: Json, spec: Json | None, status: Json) -> Json:
    found: Json = {"kind": kind, "apiVersion": api_version, "metadata": dict(body.get("metadata") or {})}
    return {**found, "status": status} if spec is None else {**found, "spec": spec, "status": status}


def _stamp(at_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))
