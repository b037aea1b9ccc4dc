"""What the server says when it does not do as asked: Kubernetes' Status, in Kubernetes' words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from tinyedge.errors import TinyEdgeError

Json = dict[str, Any]


class Cause(Struct, frozen=True):
    """One thing wrong with one field, e.g. `spec.containers`, `Required value`, `FieldValueRequired`."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"


class Refused(TinyEdgeError):
    """An answer that is an error. `details` as in Status."""

    def __init__(
        self, code: int, reason: str, message: str, details: Json | None = None, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.headers = headers

    def status(self) -> Json:
        found: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            found["reason"] = self.reason
        if self.details is not None:
            found["details"] = self.details
        return {**found, "code": self.code}


class NoSuchPath(TinyEdgeError):
    """Nothing is served there: a plain 404, as Kubernetes answers for groups and resources that it does not know."""


def success(details: Json | None = None, code: int | None = None) -> Json:
    found: Json = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if details is not None:
        found["details"] = details
    if code is not None:
        found["code"] = code
    return found


def qualified(resource: str, group: str) -> str:
    return f"{resource}.{group}" if group else resource


def _details(resource: str, group: str, name: str) -> Json:
    found: Json = {"name": name} if name else {}
    if group:
        found["group"] = group
    return {**found, "kind": resource}


def not_found(resource: str, group: str, name: str) -> Refused:
    return Refused(404, "NotFound", f'{qualified(resource, group)} "{name}" not found', _details(resource, group, name))


def already_exists(resource: str, group: str, name: str) -> Refused:
    text = f'{qualified(resource, group)} "{name}" already exists'
    return Refused(409, "AlreadyExists", text, _details(resource, group, name))


STALE = "the object has been modified; please apply your changes to the latest version and try again"


def conflict(resource: str, group: str, name: str, why: str = STALE) -> Refused:
    text = f'Operation cannot be fulfilled on {qualified(resource, group)} "{name}": {why}'
    return Refused(409, "Conflict", text, _details(resource, group, name))


def forbidden(resource: str, group: str, name: str, why: str, causes: Sequence[Cause] = ()) -> Refused:
    named = f' "{name}"' if name else ""
    details = _details(resource, group, name)
    if causes:
        details["causes"] = [{"reason": c.reason, "message": c.message, "field": c.field} for c in causes]
    return Refused(403, "Forbidden", f"{qualified(resource, group)}{named} is forbidden: {why}", details)


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> Refused:
    """Each thing wrong is listed; the message names the same one only once."""
    texts = list(dict.fromkeys(f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes))
    shown = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details: Json = {"name": name} if name else {}
    if group:
        details["group"] = group
    details["kind"] = kind
    details["causes"] = [{"reason": c.reason, "message": c.message, "field": c.field} for c in causes]
    return Refused(422, "Invalid", f'{qualified(kind, group)} "{name}" is invalid: {shown}', details)


def bad_request(message: str) -> Refused:
    return Refused(400, "BadRequest", message)


def method_not_allowed() -> Refused:
    return Refused(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def unsupported_media(accepted: Sequence[str]) -> Refused:
    text = f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
    return Refused(415, "UnsupportedMediaType", text)


def not_acceptable() -> Refused:
    text = "only the following media types are accepted: application/json"
    return Refused(406, "NotAcceptable", text)


def expired(message: str) -> Refused:
    return Refused(410, "Expired", message)


def unauthorized() -> Refused:
    return Refused(401, "Unauthorized", "Unauthorized")
