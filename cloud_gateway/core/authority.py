"""Who may join as which node, and who may connect: pure decisions over a small state that lives in a Secret.

- A token names a node, or a pattern of names; it counts once. It needs no state before it is used: its HMAC comes from
  the CA's key.
- A join binds a name to a machine and to a line. Every certificate of a node carries its line in the first half of its
  serial number, the same from a join through all renewals; so one entry for each name says which certificates are good,
  a renewal changes nothing here, and no certificate is forgotten by it.
- A bound name is given to another machine only once the operator has said so (`node replace`), and then once.
- A revoked name stays bound, so that nobody takes it by a pattern, until it is replaced or deleted.

Times are Unix seconds; time and chance come in as arguments. Refusals say what to do next.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace as changed

from cloud_gateway import limits
from tinyedge.errors import BadInput, TinyEdgeError
from tinyedge.model.names import is_label_value, is_qualified
from tinyedge.protocol import joining
from tinyedge.protocol.joining import Claims, Refusal, Taint, valid_name

DAY_S = 86400
LIFE_S = 90 * DAY_S
GRACE_S = 400 * DAY_S

_VERSION = 1
_PATTERN = re.compile(r"[a-z0-9.*?-]{1,63}")
_MACHINE = re.compile(r"[0-9a-f]{0,64}")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
# What a kubelet may say of itself under Kubernetes' own domains (NodeRestriction), but for what the gateway sets.
_LABELS_ALLOWED = frozenset(("beta.kubernetes.io/instance-type",))
_PREFIXES_ALLOWED = ("node.kubernetes.io", "topology.kubernetes.io", "kubelet.kubernetes.io")
_DOMAINS = ("kubernetes.io", "k8s.io", "tinyedge.io")


class Refused(TinyEdgeError):
    """A join, or a change, that is not allowed. `reason` is one word, for programs."""

    def __init__(self, reason: str, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.reason = reason

    def body(self) -> Refusal:
        return Refusal(self.what, self.why, self.remedy, self.reason)


class Policy(Struct, frozen=True):
    """`grace_s`: how long after its end a certificate still gets its node a new one; 0: never."""

    life_s: int = LIFE_S
    grace_s: int = GRACE_S


Why = Literal["Revoked", "Replaced", "Deleted", "Left"]

# --- state -------------------------------------------------------------------------------------------


class Used(Struct, frozen=True, omit_defaults=True):
    """A token that has been used. `key` is a digest of the public key that it was used for: whoever has that key did
    not hear the answer, and may ask again."""

    until_s: int
    name: str
    key: str


class Binding(Struct, frozen=True, omit_defaults=True):
    """A name and the machine it belongs to. `line`: the first half of its certificates' serial numbers, hex. `labels`
    and `taints`: what its join gave it, until its Node has them, whichever replica lives to set them."""

    machine: str
    line: str
    since_s: int
    revoked_s: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()


class Revoked(Struct, frozen=True, omit_defaults=True):
    """A line that is no more good. It need not be known, since nothing is bound to it; it explains the refusal."""

    name: str
    why: Why
    at_s: int
    until_s: int


class State(Struct, frozen=True, omit_defaults=True):
    """What the Secret holds. `used` by token id, `bindings` by node, `replace` node → when, `revoked` by line."""

    version: int = _VERSION
    used: dict[str, Used] = field(default_factory=dict)
    bindings: dict[str, Binding] = field(default_factory=dict)
    replace: dict[str, int] = field(default_factory=dict)
    revoked: dict[str, Revoked] = field(default_factory=dict)


def decode_state(data: bytes) -> State:
    """BadInput when it is not a state, or one of a newer version."""
    try:
        state = msgspec.json.decode(data, type=State)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput("the identity state", "(not shown)", f"the JSON of one: {error}") from None
    if state.version != _VERSION:
        raise BadInput("the version of the identity state", state.version, f"{_VERSION}: is this gateway too old?")
    return state


def encode_state(state: State, now_s: int) -> bytes:
    """Without what no longer counts. Refused when it does not fit into a Secret."""
    data = msgspec.json.encode(trimmed(state, now_s))
    if len(data) > limits.IDENTITY_STATE_BYTES_MAX:
        remedy = "delete nodes that are no more (tinyedge-gateway node delete NAME)"
        raise Refused("TooMany", "there is no room for more nodes", f"{len(state.bindings)} are known", remedy)
    return data


def trimmed(state: State, now_s: int) -> State:
    """Used tokens that have expired, and the oldest of the explanations, are forgotten."""
    revoked = sorted(state.revoked.items(), key=lambda item: item[1].at_s)[-limits.IDENTITY_REVOKED_MAX :]
    return changed(
        state,
        used={id_: used for id_, used in state.used.items() if used.until_s > now_s},
        revoked={line: item for line, item in revoked if item.until_s > now_s},
    )


# --- tokens ------------------------------------------------------------------------------------------


def token_key(ca_key: bytes) -> bytes:
    """The key of the tokens' HMAC, from the CA's private key (its PKCS#8 DER): HKDF-SHA256, one block."""
    extracted = hmac.digest(b"tinyedge join tokens", ca_key, "sha256")
    return hmac.digest(extracted, b"te1\x01", "sha256")


def make_token(
    key: bytes,
    *,
    node: str = "",
    pattern: str = "",
    ttl_s: int,
    now_s: int,
    ca: bytes,
    random: bytes,
    labels: Mapping[str, str] | None = None,
    taints: tuple[Taint, ...] = (),
) -> str:
    """A new token. `ca` is the SHA-256 of the CA's certificate, `random` at least 12 bytes that nobody can guess."""
    if bool(node) == bool(pattern):
        raise BadInput("--node", node, "a name, or --pattern instead of it")
    if node and not valid_name(node):
        raise BadInput("--node", node, f"a DNS name of at most {joining.NAME_CHARS_MAX} characters, such as gate-7")
    if pattern and not _PATTERN.fullmatch(pattern):
        raise BadInput("--pattern", pattern, "a name with * and ?, such as gate-*")
    if not 0 < ttl_s <= limits.TOKEN_TTL_S_MAX:
        raise BadInput("--ttl", f"{ttl_s}s", f"more than 0 and at most {limits.TOKEN_TTL_S_MAX // DAY_S} days")
    _check_labels(labels or {})
    _check_taints(taints)
    claims = Claims(random[:12].hex(), node, pattern, now_s + ttl_s, ca, dict(labels or {}), list(taints))
    packed = msgspec.msgpack.encode(claims)
    return joining.seal(packed, _mac(key, packed))


def _mac(key: bytes, packed: bytes) -> bytes:
    return hmac.digest(key, packed, "sha256")


def verify_token(key: bytes, token: str, now_s: int) -> Claims:
    """What a token claims, once its HMAC and its time hold; else Refused."""
    try:
        packed, mac = joining.unseal(token)
        genuine = hmac.compare_digest(mac, _mac(key, packed))
        claims = joining.claims_of(packed) if genuine else None
    except BadInput as error:
        raise Refused("BadToken", "this is not a token", error.why, "copy it whole") from None
    if claims is None:
        why = "it was not made by this gateway, or the gateway's CA was made anew since"
        raise Refused("BadToken", "the token is not valid here", why, _NEW_TOKEN)
    if now_s >= claims.expires_s:
        raise Refused("TokenExpired", "the token has expired", "", _NEW_TOKEN)
    return claims


_NEW_TOKEN = "make a new one (tinyedge-gateway token create)"  # noqa: S105 - words


# --- joining -----------------------------------------------------------------------------------------


class Asked(Struct, frozen=True):
    """Who wants to join: `name` may be empty where the token names a node, `key` is a digest (hex) of the public key in
    its request, `labels` and `taints` are what it is granted."""

    name: str
    machine: str
    key: str
    labels: dict[str, str] = {}
    taints: tuple[Taint, ...] = ()


class Admitted(Struct, frozen=True):
    """A join that is allowed once `state` is stored. `rebound`: the name was bound before, so a session under it ends.
    `line`: the first half (8 bytes, hex) of its certificates' serial numbers. `again`: nothing has changed, only the
    answer is to be given again."""

    state: State
    name: str
    line: str
    rebound: bool = False
    again: bool = False


def may_join(state: State, claims: Claims, asked: Asked, *, line: str, now_s: int, policy: Policy) -> Admitted:
    """Whether a machine may have a certificate under this name. `line` is 8 random bytes (hex) for a new line.
    Raises Refused."""
    name, machine, key = _name(claims, asked.name), asked.machine, asked.key
    if not _MACHINE.fullmatch(machine):
        raise Refused("BadRequest", "the machine's digest is not one", "", "update tinyedge on the node")
    bound = state.bindings.get(name)
    used = state.used.get(claims.id)
    if used is not None:
        # The same key on the same machine under the same name: the answer was lost on the way.
        if used != Used(claims.expires_s, name, key) or bound is None or bound.machine != machine or bound.revoked_s:
            raise Refused("TokenUsed", "the token has been used", f"by {used.name}", _NEW_TOKEN)
        return Admitted(state, name, bound.line, again=True)
    if bound is not None:
        if name not in state.replace:
            _may_rebind(claims, bound, name, machine)
        state = _void(state, name, "Replaced", now_s, policy)
    state = changed(
        state,
        used={**state.used, claims.id: Used(claims.expires_s, name, key)},
        bindings={**state.bindings, name: Binding(machine, line, now_s, labels=asked.labels, taints=asked.taints)},
        replace={other: since for other, since in state.replace.items() if other != name},
    )
    return Admitted(state, name, line, rebound=bound is not None)


def _name(claims: Claims, name: str) -> str:
    """The name that the token gives, or that the node has chosen within its pattern."""
    if claims.node:
        if name not in ("", claims.node):
            why = f"it is for {claims.node}, and this node is called {name}"
            raise Refused("WrongName", "the token is for another node", why, "leave --name out, or make another token")
        return claims.node
    if not valid_name(name):
        remedy = "choose another with --name: lower-case letters, digits, '-' and '.', at most 63"
        raise Refused("WrongName", f"no node can be called {name[:80]!r}", "", remedy)
    if not fnmatchcase(name, claims.pattern):
        why = f"it is for names like {claims.pattern}"
        raise Refused("WrongName", f"the token is not for {name}", why, "choose another with --name")
    return name


def _may_rebind(claims: Claims, bound: Binding, name: str, machine: str) -> None:
    remedy = f"to give it to this machine: tinyedge-gateway node replace {name}, then join again"
    if claims.pattern:
        why = "a token for a pattern of names can't claim it"
    elif bound.revoked_s:
        why = "it was revoked"
    elif bound.machine != machine:
        why = "it belongs to another machine"
    else:
        return
    raise Refused("NameBound", f"the name {name} is taken", why, remedy)


# --- connecting and renewing -------------------------------------------------------------------------


class CertFacts(Struct, frozen=True):
    """What a client's certificate says, once TLS has found that a CA of ours signed it. `serial` is 16 bytes, hex.
    `name` empty: it is no certificate of a node."""

    name: str
    serial: str
    not_before_s: int
    not_after_s: int


class Verdict(Struct, frozen=True):
    """`renew`: it may come in, and must renew its certificate before anything else. `reason` and `message` are for
    Bye: `Revoked`, `Replaced`, `Deleted`, `Left`, `Unknown`, `Twin`, `Expired`; `reason` is empty unless refused."""

    kind: Literal["ok", "renew", "refused"]
    reason: str = ""
    message: str = ""


def may_connect(state: State, facts: CertFacts, machine: str, now_s: int, policy: Policy) -> Verdict:
    """Whether the holder of a certificate may be its node, now. To be asked again of live sessions when the state has
    changed."""
    if not valid_name(facts.name):
        return Verdict("refused", "Unknown", f"the certificate names no node; {_AGAIN}")
    bound = state.bindings.get(facts.name)
    if bound is None or bound.line != _line(facts):
        return _not_bound(state, facts)
    if bound.revoked_s:
        return Verdict("refused", "Revoked", f"the node {facts.name} was revoked")
    if bound.machine != machine:
        words = f"this is not the machine that joined as {facts.name}: is it a copy of its storage, or other hardware?"
        return Verdict("refused", "Twin", f"{words} tinyedge-gateway node replace {facts.name}, then join again")
    return _in_time(facts, now_s, policy)


def _line(facts: CertFacts) -> str:
    return facts.serial[: 2 * joining.LINE_BYTES]


def _not_bound(state: State, facts: CertFacts) -> Verdict:
    known = state.revoked.get(_line(facts))
    if known is not None:
        return Verdict("refused", known.why, f"{_SINCE[known.why].format(name=facts.name)}; {_AGAIN}")
    if facts.name in state.bindings:
        return Verdict("refused", "Replaced", f"{_SINCE['Replaced'].format(name=facts.name)}; {_AGAIN}")
    return Verdict("refused", "Unknown", f"the gateway knows no node {facts.name}; {_AGAIN}")


def _in_time(facts: CertFacts, now_s: int, policy: Policy) -> Verdict:
    if now_s <= facts.not_after_s:
        return Verdict("ok")
    if now_s <= facts.not_after_s + policy.grace_s:
        return Verdict("renew")
    return Verdict("refused", "Expired", f"the certificate of {facts.name} ended too long ago; {_AGAIN}")


_AGAIN = "make a new token and join again"
_SINCE = {
    "Revoked": "the node {name} was revoked",
    "Replaced": "the name {name} was given to another join since",
    "Deleted": "the node {name} was deleted at the gateway",
    "Left": "the node {name} has left",
}


def may_renew(state: State, facts: CertFacts, machine: str, now_s: int, policy: Policy) -> None:
    """Whether this session may have a new certificate of the same line; else Refused."""
    verdict = may_connect(state, facts, machine, now_s, policy)
    if verdict.kind == "refused":
        raise Refused(verdict.reason, "no new certificate for this node", verdict.message)


def marked(state: State, lines: Mapping[str, str]) -> State:
    """These Nodes have what their joins gave them. `lines` by node: of the joins that this is true of."""
    done = {
        name: changed(bound, labels={}, taints=())
        for name, line in lines.items()
        if (bound := state.bindings.get(name)) and bound.line == line and (bound.labels or bound.taints)
    }
    return changed(state, bindings={**state.bindings, **done}) if done else state


# --- what the operator, or the node itself, changes --------------------------------------------------


def revoke(state: State, name: str, now_s: int) -> State:
    """No certificate of the node is good any more; its name stays bound."""
    bound = _bound(state, name)
    marked = bound if bound.revoked_s else changed(bound, revoked_s=now_s)
    replace = {other: since for other, since in state.replace.items() if other != name}
    return changed(state, bindings={**state.bindings, name: marked}, replace=replace)


def replace(state: State, name: str, now_s: int) -> State:
    """Once, any valid token may claim this name."""
    _bound(state, name)
    return changed(state, replace={**state.replace, name: now_s})


def delete(state: State, name: str, now_s: int, policy: Policy) -> State:
    """The node is no more: its certificates are void and its name is free."""
    _bound(state, name)
    return _free(_void(state, name, "Deleted", now_s, policy), name)


def leave(state: State, facts: CertFacts, now_s: int, policy: Policy) -> State:
    """The node goes, of itself. It can end only what its own certificate stands for."""
    bound = state.bindings.get(facts.name)
    if bound is None or bound.line != _line(facts):
        return state
    if bound.revoked_s:
        raise Refused("Revoked", f"the node {facts.name} was revoked")
    return _free(_void(state, facts.name, "Left", now_s, policy), facts.name)


def _bound(state: State, name: str) -> Binding:
    bound = state.bindings.get(name)
    if bound is None:
        raise Refused("Unknown", f"there is no node {name}", "nothing has joined under this name")
    return bound


def _free(state: State, name: str) -> State:
    return changed(
        state,
        bindings={other: binding for other, binding in state.bindings.items() if other != name},
        replace={other: since for other, since in state.replace.items() if other != name},
    )


def _void(state: State, name: str, why: Why, now_s: int, policy: Policy) -> State:
    """The line of the name is no more good. Its last certificate can't have been signed later than now."""
    bound = state.bindings[name]
    entry = Revoked(name, "Revoked" if bound.revoked_s else why, now_s, now_s + policy.life_s + policy.grace_s)
    return changed(state, revoked={**state.revoked, bound.line: entry})


# --- labels and taints -------------------------------------------------------------------------------


def granted(
    claims: Claims, labels: Mapping[str, str], taints: tuple[Taint, ...]
) -> tuple[dict[str, str], tuple[Taint, ...]]:
    """Labels and taints that the Node gets: what the node asks for within its rights, and over it what the token says.
    Raises Refused, naming what is not allowed."""
    try:
        _check_labels(labels)
        _check_taints(taints)
    except BadInput as error:
        raise Refused("BadRequest", error.what, error.why, "correct it and join again") from None
    own = next((key for key in labels if not _label_is_its_own(key)), None)
    own = own or next((taint.key for taint in taints if _in_domain(_prefix(taint.key), _DOMAINS)), None)
    if own is not None:
        remedy = "have it put into the token (tinyedge-gateway token create --label or --taint)"
        raise Refused("NotAllowed", f"a node may not give itself {own}", "the key's domain is not its own", remedy)
    given = {(taint.key, taint.effect): taint for taint in (*taints, *claims.taints)}
    return {**labels, **claims.labels}, tuple(given.values())


def _prefix(key: str) -> str:
    return key.rpartition("/")[0].lower()


def _in_domain(prefix: str, domains: tuple[str, ...]) -> bool:
    return any(prefix == domain or prefix.endswith("." + domain) for domain in domains)


def _label_is_its_own(key: str) -> bool:
    prefix = _prefix(key)
    if key in _LABELS_ALLOWED or _in_domain(prefix, _PREFIXES_ALLOWED):
        return True
    return not _in_domain(prefix, _DOMAINS)


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > limits.JOIN_LABELS_MAX:
        raise BadInput("labels", len(labels), f"at most {limits.JOIN_LABELS_MAX}")
    for key, value in labels.items():
        if not is_qualified(key):
            raise BadInput("the key of a label", key, "letters, digits, '-', '_' and '.', as in example.com/site")
        if not is_label_value(value):
            raise BadInput(f"the label {key}", value, "at most 63 letters, digits, '-', '_' and '.'")


def _check_taints(taints: tuple[Taint, ...]) -> None:
    if len(taints) > limits.JOIN_TAINTS_MAX:
        raise BadInput("taints", len(taints), f"at most {limits.JOIN_TAINTS_MAX}")
    for taint in taints:
        if not is_qualified(taint.key):
            raise BadInput("the key of a taint", taint.key, "letters, digits, '-', '_' and '.', as in example.com/site")
        if not is_label_value(taint.value):
            raise BadInput(f"the taint {taint.key}", taint.value, "at most 63 letters, digits, '-', '_' and '.'")
        if taint.effect not in _EFFECTS:
            raise BadInput(f"the effect of the taint {taint.key}", taint.effect, ", ".join(_EFFECTS))
