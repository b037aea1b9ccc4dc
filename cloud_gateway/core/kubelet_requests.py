"""What can be asked of a node's kubelet endpoint: from a request line to what is meant, and who may ask for it. Pure.

GET       /containerLogs/NS/POD/CONTAINER                       get    nodes/proxy
GET POST  /exec/NS/POD[/UID]/CONTAINER  /attach/…               create nodes/proxy
GET POST  /portForward/NS/POD[/UID]                             create nodes/proxy
GET       /stats/summary                                        get    nodes/stats, else nodes/proxy
GET       /metrics/resource                                     get    nodes/metrics, else nodes/proxy
GET       /pods                                                 get    nodes/pods, else nodes/proxy
GET       /healthz                                              get    nodes/healthz, else nodes/proxy

Whatever leaves here fits into a message of the link: a caller must not be able to end a node's session by asking for
more than its other end takes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote

from msgspec import Struct

from tinyedge.limits import LIST_ITEMS_MAX
from tinyedge.model.names import is_label, is_subdomain, is_uid
from tinyedge.protocol.link import Param

COMMAND_WORDS_MAX = LIST_ITEMS_MAX
QUERY_FIELDS_MAX = COMMAND_WORDS_MAX + 100  # a command, and some flags
TARGET_BYTES_MAX = 64 * 1024
PORTS_MAX = 100
HEADERS_MAX = 32  # that go on

Access = tuple[str, str]  # verb and subresource of nodes
_PROXY: tuple[Access, ...] = (("get", "proxy"),)
_ENTER: tuple[Access, ...] = (("create", "proxy"),)
_DOCUMENTS: dict[str, tuple[str, str]] = {
    "/stats/summary": ("stats", "stats"),
    "/metrics/resource": ("metrics", "metrics"),
    "/pods": ("pods", "pods"),
    "/healthz": ("healthz", "healthz"),
}
_LOG_NUMBERS = ("tailLines", "sinceSeconds", "limitBytes")
_TRUE = ("1", "true", "True", "t", "T", "TRUE")
_FALSE = ("0", "false", "False", "f", "F", "FALSE", "")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class Asked(Struct, frozen=True):
    """`what` and `params` as the link's streams know them; `access`: one of these must be allowed. `namespace` and
    `pod` are empty for what is about the node."""

    what: str
    access: tuple[Access, ...]
    namespace: str = ""
    pod: str = ""
    uid: str = ""
    params: dict[str, Param] = {}


class BadRequest(Exception):
    """`status` 400, 404 or 405."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def parse(method: str, target: str, headers: Sequence[tuple[str, str]] = ()) -> Asked:
    """What a request means. `headers` have lower-case names. Raises BadRequest."""
    if len(target) > TARGET_BYTES_MAX:
        raise BadRequest(400, "the request is too long")
    path, _, query = target.partition("?")
    if found := _DOCUMENTS.get(path):
        if method != "GET":
            raise BadRequest(405, "only GET")
        what, subresource = found
        return Asked(what, (("get", subresource), *_PROXY))
    parts = [unquote(part) for part in path.strip("/").split("/")]
    fields = _fields(query)
    match parts:
        case ["containerLogs", namespace, pod, container] if method == "GET":
            return _named(Asked("logs", _PROXY, namespace, pod, "", _logs(container, fields)))
        case ["exec" | "attach" as what, namespace, pod, *rest] if method in ("GET", "POST") and 1 <= len(rest) <= 2:
            uid = rest[0] if len(rest) == 2 else ""
            params = _session(what, rest[-1], fields)
            return _named(Asked(what, _ENTER, namespace, pod, uid, _entered(method, headers, params)))
        case ["portForward", namespace, pod, *rest] if method in ("GET", "POST") and len(rest) <= 1:
            uid = rest[0] if rest else ""
            return _named(Asked("portforward", _ENTER, namespace, pod, uid, _entered(method, headers, _ports(fields))))
    raise BadRequest(404, "404 page not found")


def _fields(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX, errors="strict")
    except (ValueError, UnicodeDecodeError):
        raise BadRequest(400, "the query can't be read") from None


def _named(asked: Asked) -> Asked:
    container = asked.params.get("container")
    if not is_label(asked.namespace) or not is_subdomain(asked.pod) or (asked.uid and not is_uid(asked.uid)):
        raise BadRequest(400, "that is no namespace, pod or uid")
    if container is not None and not (isinstance(container, str) and is_label(container)):
        raise BadRequest(400, "that is no container")
    return asked


def _flag(fields: list[tuple[str, str]], name: str) -> bool:
    value = next((value for key, value in reversed(fields) if key == name), "")
    if value not in _TRUE + _FALSE:
        raise BadRequest(400, f"{name} is {value[:40]!r}: expected true or false")
    return value in _TRUE


def _logs(container: str, fields: list[tuple[str, str]]) -> dict[str, Param]:
    params: dict[str, Param] = {"container": container}
    for name in ("follow", "previous", "timestamps"):
        if _flag(fields, name):
            params[name] = True
    given = dict(fields)
    for name in _LOG_NUMBERS:
        if (text := given.get(name)) is not None:
            if not text.isascii() or not text.isdigit() or len(text) > 15:
                raise BadRequest(400, f"{name} is {text[:40]!r}: expected a whole number, not negative")
            params[name] = int(text)
    if since := given.get("sinceTime"):
        if not _TIME.fullmatch(since):
            raise BadRequest(400, f"sinceTime is {since[:40]!r}: expected a time such as 2026-11-23T13:33:49Z")
        params["sinceTime"] = since
    return params


def _session(what: str, container: str, fields: list[tuple[str, str]]) -> dict[str, Param]:
    """The query of a kubelet (`input`, `output`, `error`) or of an API server (`stdin`, `stdout`, `stderr`)."""
    params: dict[str, Param] = {"container": container, "tty": _flag(fields, "tty")}
    for name, other in (("stdin", "input"), ("stdout", "output"), ("stderr", "error")):
        params[name] = _flag(fields, name) or _flag(fields, other)
    if what == "exec":
        command: list[str | list[str]] = [value for key, value in fields if key == "command"]
        if not command:
            raise BadRequest(400, "you must specify at least 1 command")
        if len(command) > COMMAND_WORDS_MAX:
            raise BadRequest(400, f"the command has {len(command)} words: expected at most {COMMAND_WORDS_MAX}")
        params["command"] = command
    if not (params["stdin"] or params["stdout"] or params["stderr"]):
        raise BadRequest(400, "you must specify at least 1 of stdin, stdout, stderr")
    if params["tty"]:
        params["stderr"] = False  # a terminal has one output, and runtimes refuse two; so does a kubelet
    return params


def _ports(fields: list[tuple[str, str]]) -> dict[str, Param]:
    ports: list[str | list[str]] = []
    for text in (part for key, value in fields if key in ("port", "ports") for part in value.split(",")):
        if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6] or 0) <= 65535:
            raise BadRequest(400, f"port is {text[:40]!r}: expected 1 to 65535")
        ports.append(text)
    if len(ports) > PORTS_MAX:
        raise BadRequest(400, f"{len(ports)} ports: expected at most {PORTS_MAX}")
    return {"ports": ports}


def _entered(method: str, headers: Sequence[tuple[str, str]], params: dict[str, Param]) -> dict[str, Param]:
    names = ("upgrade", "connection", "x-stream-protocol-version")
    kept = [[name, value] for name, value in headers if name in names or name.startswith("sec-websocket-")]
    if not any(name == "upgrade" for name, _ in kept):
        raise BadRequest(400, "Upgrade request required")
    if len(kept) > HEADERS_MAX:
        raise BadRequest(400, "there are too many headers about the upgrade")
    listed: list[str | list[str]] = list(kept)
    return params | {"headers": listed, "method": method}
