"""What can be asked: one handler for each path, from a `Call` to a `Reply`. Bytes are the server's business."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing

import msgspec
import trio
from msgspec import Struct

from tinyedge import __version__, limits
from tinyedge.adapters.local_api.backend import Backend, JoinBody, Json, LogOptions, Note
from tinyedge.errors import BadInput, PeerError, StoreError, StoreFull, StoreReadOnly, TinyEdgeError
from tinyedge.events import (
    Answer,
    Apply,
    CallMethod,
    DeleteObject,
    ReadDevice,
    Release,
    Request,
    RestartPod,
    SetDesired,
)
from tinyedge.model.objects import API_VERSIONS
from tinyedge.redact import Redactor
from tinyedge.unix_socket import Peer

KINDS = {
    "pods": "Pod",
    "configmaps": "ConfigMap",
    "secrets": "Secret",
    "nodes": "Node",
    "events": "Event",
    "devices": "Device",
    "devicemodels": "DeviceModel",
    "localrules": "LocalRule",
    "rules": "Rule",
    "ruleendpoints": "RuleEndpoint",
}
CHANGEABLE = tuple(kind for kind in KINDS if kind not in ("nodes", "events"))
HISTORY_VALUES = 100  # that are told unless more are asked for


class ApiError(TinyEdgeError):
    """An error with its HTTP status and a `reason` that a program may look at."""

    def __init__(self, status: int, reason: str, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.status = status
        self.reason = reason


class Call(Struct, frozen=True):
    method: str
    segments: tuple[str, ...]
    query: dict[str, list[str]]
    body: bytes
    caller: Peer

    def text(self, name: str) -> str:
        return self.query.get(name, [""])[-1]

    def flag(self, name: str) -> bool:
        return self.text(name).lower() in ("1", "true", "yes")

    def number(self, name: str) -> int | None:
        text = self.text(name)
        if not text:
            return None
        if not text.isdigit() or len(text) > 12:
            raise BadInput(f"?{name}", text, "a whole number, not negative")
        return int(text)


class Reply(Struct, frozen=True):
    """`body` is bytes, or an iterator of pieces that are sent as they come."""

    body: bytes | AsyncGenerator[bytes, None]
    status: int = 200
    content_type: str = "application/json"


# --- answers ---------------------------------------------------------------------------------------


def _json(value: object, status: int = 200) -> Reply:
    return Reply(msgspec.json.encode(value) + b"\n", status)


async def _lines(items: AsyncGenerator[Json, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(items) as closing:
        async for item in closing:
            yield msgspec.json.encode(item) + b"\n"


def _not_found(kind: str, namespace: str, name: str) -> ApiError:
    where = f" in namespace {namespace}" if namespace else ""
    return ApiError(404, "NotFound", f'{kind} "{name}" not found{where}', "", f"tinyedge get {kind} -A lists them")


def explained(error: TinyEdgeError) -> ApiError:
    """Any error for people as an answer of the API."""
    if isinstance(error, ApiError):
        return error
    status, reason = 500, "InternalError"
    if isinstance(error, BadInput):
        status, reason = 400, "BadRequest"
    elif isinstance(error, StoreFull):
        status, reason = 507, "StoreFull"
    elif isinstance(error, StoreReadOnly):
        status, reason = 503, "StoreReadOnly"
    elif isinstance(error, StoreError):
        status, reason = 500, "StoreError"
    elif isinstance(error, PeerError):
        status, reason = 502, "RuntimeError"
    return ApiError(status, reason, error.what, error.why, error.remedy)


def error_body(error: ApiError) -> bytes:
    return msgspec.json.encode({"what": error.what, "why": error.why, "remedy": error.remedy, "reason": error.reason})


def _checked(answer: Answer, remedy: str = "") -> Answer:
    if answer.error:
        reason = answer.error if answer.error.isalpha() else "Refused"
        raise ApiError(ANSWER_STATUS.get(reason, 409), reason, answer.message or answer.error, "", remedy)
    return answer


async def _long_list(items: Iterable[Json], namespace: str) -> AsyncGenerator[bytes, None]:
    """A list that is never in memory whole; others have their turn between any two items."""
    before = f'{{"apiVersion":"{API_VERSIONS["Device"]}","kind":"DeviceList","items":[\n'
    for item in items:
        await trio.lowlevel.checkpoint()
        if namespace in ("", item["metadata"]["namespace"]):
            yield before.encode() + msgspec.json.encode(item) + b"\n"
            before = ","
    yield (before if before != "," else "").encode() + b"]}\n"


def _has_property(device: Json, name: str) -> None:
    names = [one["name"] for one in device["spec"].get("properties", ())]
    if name not in names:
        meta = device["metadata"]
        what = f'device "{meta["name"]}" has no property "{name}"'
        raise ApiError(404, "NotFound", what, "", f"it has: {', '.join(names) or 'none'}")


def _body(call: Call, shape: Json) -> Json:
    """An object with the keys of `shape`, and no other."""
    try:
        found = msgspec.json.decode(call.body)
    except (msgspec.DecodeError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.keys() != shape.keys():
        raise BadInput("the request's body", call.body[:40], msgspec.json.encode(shape).decode())
    return found


def _texts(values: Json) -> dict[str, str]:
    """Values as devices have them. JSON's own kinds are understood: 3, 1.5, true."""
    for name, value in values.items():
        if not isinstance(value, str | int | float):
            raise BadInput(name, value, "a text, a number, true or false")
    return {
        name: value if isinstance(value, str) else msgspec.json.encode(value).decode() for name, value in values.items()
    }


ANSWER_STATUS = {
    "NotFound": 404,
    "Conflict": 409,
    "Invalid": 422,
    "Forbidden": 403,
    "StoreReadOnly": 503,
    "StoreFull": 507,
}


class Routes:
    """One method for each thing that can be asked."""

    def __init__(self, backend: Backend, note: Note) -> None:
        self.backend = backend
        self.note = note

    # what is

    def listed(self, kind: str) -> Sequence[Json]:
        if kind == "nodes":
            return [node] if (node := self.backend.node()) else []
        views: dict[str, Callable[[], Sequence[Json]]] = {
            "pods": self.backend.pods,
            "configmaps": self.backend.configmaps,
            "secrets": self.backend.secrets,
            "events": self.backend.events,
            "devicemodels": self.backend.devicemodels,
            "localrules": self.backend.localrules,
            "rules": self.backend.rules,
            "ruleendpoints": self.backend.ruleendpoints,
        }
        if kind not in views:
            raise ApiError(404, "NotFound", f"there is no kind {kind}", "", f"known are {', '.join(KINDS)}, images")
        return views[kind]()

    async def list_all(self, call: Call, kind: str) -> Reply:
        return await self.list_in(call, "", kind)

    async def list_in(self, call: Call, namespace: str, kind: str) -> Reply:
        if kind == "images":
            return _json({"items": list(self.backend.images())})
        if call.flag("watch") and kind in KINDS:
            return Reply(_lines(self._changes(kind, namespace)), content_type="application/jsonl")
        if kind == "devices":
            return Reply(_long_list(self.backend.devices(), namespace))
        items = [item for item in self.listed(kind) if not namespace or item["metadata"].get("namespace") == namespace]
        api = API_VERSIONS.get(KINDS[kind], "v1")
        return _json({"apiVersion": api, "kind": f"{KINDS[kind]}List", "items": items})

    async def _changes(self, kind: str, namespace: str) -> AsyncGenerator[Json, None]:
        async with aclosing(self.backend.watch(kind)) as changes:
            async for change in changes:
                if not namespace or change["object"]["metadata"].get("namespace") == namespace:
                    yield change

    async def one(self, call: Call, namespace: str, kind: str, name: str) -> Reply:
        if kind == "devices":
            return _json(self._device(namespace, name))
        for item in self.listed(kind):
            if item["metadata"]["name"] == name and item["metadata"].get("namespace", namespace) == namespace:
                return _json(item)
        raise _not_found(kind, namespace, name)

    async def node(self, call: Call) -> Reply:
        return _json(self.backend.node())

    async def version(self, call: Call) -> Reply:
        return _json({"version": __version__})

    async def status(self, call: Call) -> Reply:
        return _json(self.backend.status())

    async def usage(self, call: Call) -> Reply:
        return _json(self.backend.usage())

    async def blackbox(self, call: Call) -> Reply:
        return _json({"items": list(self.backend.blackbox())})

    async def store(self, call: Call) -> Reply:
        return _json(await self.backend.store_report())

    async def config(self, call: Call) -> Reply:
        return _json(self.backend.config())

    async def redact(self, call: Call) -> Reply:
        """For text from elsewhere that is to be shown to others."""
        try:
            text = msgspec.json.decode(call.body, type=dict[str, str])["text"]
        except (msgspec.DecodeError, KeyError):
            raise BadInput("the request's body", call.body[:40], '{"text": "…"}') from None
        return _json({"text": Redactor(self.backend.secret_values()).text(text)})

    async def metrics(self, call: Call) -> Reply:
        return Reply(self.backend.metrics().encode(), content_type="text/plain; version=0.0.4; charset=utf-8")

    async def alive(self, call: Call) -> Reply:
        return Reply(b"ok\n", content_type="text/plain")

    async def ready(self, call: Call) -> Reply:
        health = self.backend.health()
        return _json(health, 200 if health.get("ready") else 503)

    async def why(self, call: Call, namespace: str, name: str) -> Reply:
        found = self.backend.why(namespace, name)
        if found is None:
            raise _not_found("pods", namespace, name)
        return _json(found)

    async def why_device(self, call: Call, namespace: str, name: str) -> Reply:
        found = self.backend.why_device(namespace, name)
        if found is None:
            raise _not_found("devices", namespace, name)
        return _json(found)

    async def why_rule(self, call: Call, namespace: str, name: str) -> Reply:
        found = self.backend.why_rule(namespace, name)
        if found is None:
            raise _not_found("localrules", namespace, name)
        return _json(found)

    async def history(self, call: Call, namespace: str, name: str) -> Reply:
        device, wanted = self._device(namespace, name), call.text("property")
        if wanted:
            _has_property(device, wanted)
        limit = min(call.number("limit") or HISTORY_VALUES, limits.HISTORY_VALUES_MAX)
        return _json(await self.backend.history(namespace, name, wanted, limit))

    def _device(self, namespace: str, name: str) -> Json:
        device = self.backend.device(namespace, name)
        if device is None:
            raise _not_found("devices", namespace, name)
        return device

    async def log(self, call: Call, namespace: str, name: str) -> Reply:
        container = self._container(call, namespace, name)
        options = LogOptions(
            follow=call.flag("follow"),
            previous=call.flag("previous"),
            tail_lines=call.number("tailLines"),
            since_s=call.number("sinceSeconds"),
            timestamps=call.flag("timestamps"),
        )
        pieces = self.backend.logs(namespace, name, container, options)
        return Reply(pieces, content_type="text/plain; charset=utf-8")

    def _container(self, call: Call, namespace: str, name: str) -> str:
        """The container that is meant: named, or the one that the pod declares as its default, or its first."""
        pod = self.backend.pod(namespace, name)
        if pod is None:
            raise _not_found("pods", namespace, name)
        spec = pod.get("spec", {})
        names = [c["name"] for c in (*spec.get("containers", ()), *spec.get("initContainers", ()))]
        asked = call.text("container") or pod["metadata"].get("annotations", {}).get(
            "kubectl.kubernetes.io/default-container", ""
        )
        if asked and asked not in names:
            raise ApiError(
                400, "BadRequest", f'pod "{name}" has no container "{asked}"', "", f"it has: {', '.join(names)}"
            )
        return asked or names[0]

    # what changes

    async def exec(self, call: Call, namespace: str, name: str) -> Reply:
        container = self._container(call, namespace, name)
        argv = call.query.get("command", [])
        if not argv:
            raise BadInput("?command", "", "the command to run, one parameter for each word")
        target = f"{namespace}/{name}/{container}"
        with self._logged(call, "exec", target, command=argv[0]):
            stdin, tty = call.flag("stdin"), call.flag("tty")
            return _json({"url": await self.backend.exec_url(namespace, name, container, argv, stdin=stdin, tty=tty)})

    async def attach(self, call: Call, namespace: str, name: str) -> Reply:
        container = self._container(call, namespace, name)
        with self._logged(call, "attach", f"{namespace}/{name}/{container}"):
            stdin, tty = call.flag("stdin"), call.flag("tty")
            return _json({"url": await self.backend.attach_url(namespace, name, container, stdin=stdin, tty=tty)})

    async def port_forward(self, call: Call, namespace: str, name: str) -> Reply:
        if self.backend.pod(namespace, name) is None:
            raise _not_found("pods", namespace, name)
        ports = call.query.get("ports", [])
        numbers = [int(port) for port in ports if port.isdigit() and 0 < int(port) < 65536]
        if not numbers or len(numbers) != len(ports):
            raise BadInput("?ports", ",".join(ports), "ports of the pod, 1 to 65535")
        with self._logged(call, "port-forward", f"{namespace}/{name}", ports=",".join(ports)):
            return _json({"url": await self.backend.port_forward_url(namespace, name, numbers)})

    async def restart(self, call: Call, namespace: str, name: str) -> Reply:
        container = self._container(call, namespace, name) if call.text("container") else ""
        if not self._there("pods", namespace, name):
            raise _not_found("pods", namespace, name)
        what = RestartPod(namespace, name, container)
        return _json({"message": await self._request(call, "restart", f"pods/{namespace}/{name}", what)})

    async def release(self, call: Call, namespace: str = "", name: str = "") -> Reply:
        if name and not self._there("pods", namespace, name):
            raise _not_found("pods", namespace, name)
        target = f"pods/{namespace}/{name}" if name else "pods"
        return _json({"message": await self._request(call, "release", target, Release(namespace, name))})

    async def delete(self, call: Call, namespace: str, kind: str, name: str) -> Reply:
        if kind not in CHANGEABLE:
            raise ApiError(405, "MethodNotAllowed", f"{kind} can't be deleted", "", f"{', '.join(CHANGEABLE)} can")
        if not self._there(kind, namespace, name):
            raise _not_found(kind, namespace, name)
        what = DeleteObject(KINDS[kind], namespace, name, call.number("gracePeriodSeconds"))
        return _json({"message": await self._request(call, "delete", f"{kind}/{namespace}/{name}", what)})

    async def apply(self, call: Call) -> Reply:
        try:
            document = msgspec.json.decode(call.body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadInput("the request's body", call.body[:40], f"JSON ({error})") from None
        items = document.get("items") if isinstance(document, dict) else None
        if not isinstance(items, list) or not items:
            raise BadInput("the request's body", document, '{"items": [manifest, …]}')
        objects = self.backend.decode(items)
        named = [(f"{o.kind.lower()}s", o.metadata.namespace, o.metadata.name) for o in objects]
        before = [self._there(*name) for name in named]
        message = await self._request(call, "apply", " ".join("/".join(name) for name in named[:10]), Apply(objects))
        done = [
            {"kind": kind, "namespace": namespace, "name": name, "created": not there}
            for (kind, namespace, name), there in zip(named, before, strict=True)
        ]
        return _json({"message": message, "objects": done})

    # what is asked of devices

    async def write_property(self, call: Call, namespace: str, name: str, property_name: str) -> Reply:
        _has_property(self._device(namespace, name), property_name)
        value = _texts(_body(call, {"value": "what the property is to have"}))["value"]
        what = SetDesired(namespace, name, property_name, value)
        shown = {"property": property_name, "value": value[:100]}
        return _json({"message": (await self._ask_device(call, "write", what, shown)).message})

    async def clear_property(self, call: Call, namespace: str, name: str, property_name: str) -> Reply:
        _has_property(self._device(namespace, name), property_name)
        what = SetDesired(namespace, name, property_name, None)
        return _json({"message": (await self._ask_device(call, "clear", what, {"property": property_name})).message})

    async def read_device(self, call: Call, namespace: str, name: str) -> Reply:
        device, wanted = self._device(namespace, name), call.text("property")
        if wanted:
            _has_property(device, wanted)
        answer = await self._ask_device(call, "read", ReadDevice(namespace, name, wanted), {"property": wanted})
        return _json({"message": answer.message, "values": msgspec.json.decode(answer.data or b"{}")})

    async def call_method(self, call: Call, namespace: str, name: str, method: str) -> Reply:
        self._device(namespace, name)
        arguments = _body(call, {"arguments": {"a property": "its value"}})["arguments"] if call.body else {}
        if not isinstance(arguments, dict):
            raise BadInput("arguments", arguments, "an object of property: value")
        what = CallMethod(namespace, name, method, _texts(arguments))
        answer = await self._ask_device(call, "call", what, {"method": method})
        return _json({"message": answer.message, "values": msgspec.json.decode(answer.data or b"{}")})

    async def _ask_device(
        self, call: Call, verb: str, what: SetDesired | ReadDevice | CallMethod, shown: dict[str, str]
    ) -> Answer:
        """A device may take any time, and who waits for it may not."""
        with self._logged(call, f"device.{verb}", f"devices/{what.namespace}/{what.name}", **shown):
            with trio.move_on_after(limits.API_DEVICE_S):
                answer = await self.backend.request(call.caller.uid, what)
                about = "what it takes and has" if isinstance(what, SetDesired) else "its properties and methods"
                remedy = f"see {about}: tinyedge describe device -n {what.namespace} {what.name}"
                return _checked(answer, remedy)
            raise ApiError(
                504,
                "Timeout",
                f"device {what.name} has not answered within {limits.API_DEVICE_S} s",
                "its mapper is still at it, and that goes on",
                f"see what comes of it: tinyedge describe device {what.name} -n {what.namespace}",
            )

    def _there(self, kind: str, namespace: str, name: str) -> bool:
        if kind == "devices":
            return self.backend.device(namespace, name) is not None
        metas = (item["metadata"] for item in self.listed(kind))
        return any((meta.get("namespace"), meta["name"]) == (namespace, name) for meta in metas)

    async def _request(self, call: Call, verb: str, target: str, what: Request) -> str:
        """Ask the core; its words, once what it promises is on disk."""
        with self._logged(call, verb, target):
            return _checked(await self.backend.request(call.caller.uid, what)).message

    async def pull(self, call: Call) -> Reply:
        image = self._named(call, "image", "a reference such as docker.io/library/busybox:1.36")
        lines = _logged_lines(self._logged(call, "image.pull", image), self.backend.pull_image(image))
        return Reply(lines, content_type="application/jsonl")

    async def import_image(self, call: Call) -> Reply:
        path = self._named(call, "path", "the absolute path of an image archive")
        if not path.startswith("/"):
            raise BadInput("?path", path, "an absolute path")
        lines = _logged_lines(self._logged(call, "image.import", path), self.backend.import_image(path))
        return Reply(lines, content_type="application/jsonl")

    async def remove_image(self, call: Call) -> Reply:
        image = self._named(call, "image", "an image's name or id")
        with self._logged(call, "image.remove", image):
            await self.backend.remove_image(image)
            return _json({"message": f"image {image} removed"})

    async def join(self, call: Call) -> Reply:
        try:
            asked = msgspec.json.decode(call.body, type=JoinBody)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadInput("the request's body", "(not shown)", f"url and token ({error})") from None
        with self._logged(call, "join", asked.url.rpartition("@")[2]):
            return _json({"message": await _of_gateway(self.backend.join(asked))})

    async def leave(self, call: Call) -> Reply:
        with self._logged(call, "leave", "gateway"):
            return _json({"message": await _of_gateway(self.backend.leave(local=call.flag("local")))})

    async def upgrade(self, call: Call) -> Reply:
        name = _body(call, {"name": "of an installed version, or empty"})["name"]
        if not isinstance(name, str):
            raise BadInput("name", name, "the name of an installed version")
        with self._logged(call, "upgrade", name):
            return _json({"message": await self.backend.upgrade(name)})

    def _named(self, call: Call, name: str, expected: str) -> str:
        if not call.text(name):
            raise BadInput(f"?{name}", "", expected)
        return call.text(name)

    def _logged(self, call: Call, verb: str, target: str, **more: str) -> _Logged:
        return _Logged(self.note, verb, {"target": target, "uid": call.caller.uid, "pid": call.caller.pid, **more})


async def _of_gateway(work: Awaitable[str]) -> str:
    try:
        return await work
    except PeerError as error:
        raise ApiError(502, "GatewayError", error.what, error.why, error.remedy) from error


class _Logged:
    """A change by a caller: one line of log with its outcome, whatever that is."""

    def __init__(self, note: Note, verb: str, fields: dict[str, str | int | bool]) -> None:
        self.note = note
        self.verb = verb
        self.fields = fields

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        outcome = "ok" if error is None else str(error) or type(error).__name__
        self.note("info" if error is None else "warning", f"api.{self.verb}", {**self.fields, "outcome": outcome})


async def _logged_lines(logged: _Logged, items: AsyncGenerator[Json, None]) -> AsyncGenerator[bytes, None]:
    """Work that goes on while it is told of: its outcome is known when it is over, or its caller has gone."""
    with logged:
        async with aclosing(_lines(items)) as lines:
            async for line in lines:
                yield line


Handler = Callable[..., Awaitable[Reply]]
POD = "v1/namespaces/*/pods/*"
DEVICE = "v1/namespaces/*/devices/*"
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "healthz", Routes.alive),
    ("GET", "readyz", Routes.ready),
    ("GET", "metrics", Routes.metrics),
    ("GET", "v1/version", Routes.version),
    ("GET", "v1/status", Routes.status),
    ("GET", "v1/node", Routes.node),
    ("GET", "v1/usage", Routes.usage),
    ("GET", "v1/blackbox", Routes.blackbox),
    ("GET", "v1/store", Routes.store),
    ("GET", "v1/config", Routes.config),
    ("POST", "v1/redact", Routes.redact),
    ("POST", "v1/apply", Routes.apply),
    ("POST", "v1/release", Routes.release),
    ("POST", "v1/images/pull", Routes.pull),
    ("POST", "v1/images/import", Routes.import_image),
    ("DELETE", "v1/images", Routes.remove_image),
    ("POST", "v1/join", Routes.join),
    ("DELETE", "v1/join", Routes.leave),
    ("POST", "v1/upgrade", Routes.upgrade),
    ("GET", "v1/*", Routes.list_all),
    ("GET", "v1/namespaces/*/*", Routes.list_in),
    ("GET", "v1/namespaces/*/*/*", Routes.one),
    ("DELETE", "v1/namespaces/*/*/*", Routes.delete),
    ("GET", f"{POD}/why", Routes.why),
    ("GET", f"{POD}/log", Routes.log),
    ("POST", f"{POD}/exec", Routes.exec),
    ("POST", f"{POD}/attach", Routes.attach),
    ("POST", f"{POD}/portforward", Routes.port_forward),
    ("POST", f"{POD}/restart", Routes.restart),
    ("POST", f"{POD}/release", Routes.release),
    ("GET", "v1/namespaces/*/localrules/*/why", Routes.why_rule),
    ("GET", f"{DEVICE}/why", Routes.why_device),
    ("GET", f"{DEVICE}/history", Routes.history),
    ("POST", f"{DEVICE}/read", Routes.read_device),
    ("POST", f"{DEVICE}/properties/*", Routes.write_property),
    ("DELETE", f"{DEVICE}/properties/*", Routes.clear_property),
    ("POST", f"{DEVICE}/methods/*", Routes.call_method),
)


def route(method: str, segments: tuple[str, ...]) -> tuple[Handler, list[str]]:
    """The handler of a request and the parts of the path that it is given."""
    allowed = []
    for verb, pattern, handler in ROUTES:
        parts = pattern.split("/")
        if len(parts) == len(segments) and all(p in ("*", s) for p, s in zip(parts, segments, strict=True)):
            if verb == method:
                return handler, [s for p, s in zip(parts, segments, strict=True) if p == "*"]
            allowed.append(verb)
    path = "/" + "/".join(segments)
    if allowed:
        raise ApiError(405, "MethodNotAllowed", f"{method} {path} is not possible", "", f"use {' or '.join(allowed)}")
    raise ApiError(404, "NotFound", f"there is nothing at {path}", "", "docs/cli.md lists the paths")
