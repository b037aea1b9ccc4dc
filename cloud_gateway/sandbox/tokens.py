"""Who asks, and what he may: service-account tokens (JWT, ES256), the admin's token, and the reviews of both.

There are no RBAC objects in the sandbox. The rule instead: whoever is in the group system:masters, and the gateway's own
service account, may do everything; every other service account may only ask who it is itself; nobody else is anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

Json = dict[str, Any]

API_AUDIENCE = "https://kubernetes.default.svc"
TRUSTED = frozenset({"system:serviceaccount:tinyedge:tinyedge-gateway"})

Alive = Callable[[str, str, str, str], bool]  # (plural, namespace, name, uid) -> there is such an object


class User(Struct, frozen=True):
    """As in TokenReview."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, list[str]] = {}

    def shown(self) -> Json:
        """As `status.user` says it."""
        raise NotImplementedError


class Tokens:
    """`folder` holds the key and the admin's token, made once, 0600. `wall_s`: the wall clock, unix seconds."""

    admin_token: str

    def __init__(self, folder: Path, *, wall_s: Callable[[], float]) -> None:
        raise NotImplementedError

    def authenticate(self, token: str, alive: Alive, audiences: Sequence[str] = (API_AUDIENCE,)) -> User | None:
        """Whose token it is; None: nobody's (malformed, expired, for others, or what it is bound to is gone)."""
        raise NotImplementedError

    def request(self, body: Json, account: Json, alive: Alive) -> Json:
        """The answer (201) to a TokenRequest `body` for the ServiceAccount object `account`. Raises Refused."""
        raise NotImplementedError

    def review(self, body: Json, alive: Alive) -> Json:
        """The answer (201) to a TokenReview."""
        raise NotImplementedError


def allowed(username: str, groups: Sequence[str]) -> bool:
    """May everything, or (almost) nothing: see above."""
    raise NotImplementedError


def access_review(body: Json, asker: User) -> Json:
    """The answer (201) to a SubjectAccessReview, SelfSubjectAccessReview or LocalSubjectAccessReview (by its kind);
    and to a SelfSubjectReview (authentication.k8s.io), which says who the asker is."""
    raise NotImplementedError
