"""From a request to an answer: paths, verbs, who may, and what is written where. Bytes are the server's business."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
import trio
from msgspec import Struct

from cloud_gateway.sandbox import discovery, forms, kubelet_proxy, openapi_v2, patch, protobuf, status, tokens
from cloud_gateway.sandbox.forms import Form
from cloud_gateway.sandbox.reads import Query, Reads
from cloud_gateway.sandbox.registry import Deletion, Done, Options, Place, Registry
from cloud_gateway.sandbox.resources import Catalogue
from cloud_gateway.sandbox.status import NoSuchPath, Refused
from cloud_gateway.sandbox.tokens import Tokens, User

Json = dict[str, Any]
Takeover = Callable[[trio.abc.Stream, bytes], Awaitable[None]]  # the client's stream, what came behind the head

JSON = "application/json"
_DISCOVERY_TYPE = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_HEALTH = ("healthz", "livez", "readyz")
_PROXIED = ("log", "exec", "attach", "portforward")
_GETS = {"exec": ("GET", "POST"), "attach": ("GET", "POST"), "portforward": ("GET", "POST"), "log": ("GET",)}


class Request(Struct, frozen=True):
    """`user` None: nobody that is known. `headers` with lower-case names."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    user: User | None

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")


class Answer(Struct):
    """`lines`: a body that goes on, instead of `body`. `takeover`: the client's connection is handed over."""

    code: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Sequence[tuple[str, str]] = ()
    lines: AsyncGenerator[bytes, None] | None = None
    takeover: Takeover | None = None


class Call(Struct, frozen=True):
    """A request whose path has been read."""

    request: Request
    place: Place
    query: dict[str, str]
    pairs: tuple[tuple[str, str], ...]
    form: Form

    def flag(self, name: str) -> bool:
        return self.query.get(name, "0").lower() not in ("0", "false", "")

    def number(self, name: str) -> int:
        text = self.query.get(name, "")
        if text and (not text.isdigit() or len(text) > 9):
            raise status.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
        return int(text or 0)

    def options(self) -> Options:
        dry = self.query.get("dryRun", "")
        if dry not in ("", "All"):
            cause = status.Cause(
                "dryRun", f'Unsupported value: "{dry}": supported values: "All"', "FieldValueNotSupported"
            )
            raise status.invalid("CreateOptions", "meta.k8s.io", "", [cause])
        validation = self.query.get("fieldValidation", "") or "Warn"
        if validation not in ("Strict", "Warn", "Ignore"):
            known = '"", "Ignore", "Strict", "Warn"'
            text = f'Unsupported value: "{validation}": supported values: {known}'
            cause = status.Cause("fieldValidation", text, "FieldValueNotSupported")
            raise status.invalid("CreateOptions", "meta.k8s.io", "", [cause])
        return Options(dry == "All", validation)

    def listing(self) -> Query:
        return Query(
            self.query.get("labelSelector", ""),
            self.query.get("fieldSelector", ""),
            self.query.get("resourceVersion", ""),
            self.query.get("resourceVersionMatch", ""),
            self.number("limit"),
            self.query.get("continue", ""),
            self.flag("allowWatchBookmarks"),
            self.flag("sendInitialEvents"),
            self.number("timeoutSeconds"),
        )


def _json(value: object, code: int = 200, content_type: str = JSON) -> Answer:
    return Answer(code, msgspec.json.encode(value), content_type)


def refusal(refused: Refused) -> Answer:
    answer = _json(refused.status(), refused.code)
    answer.headers = refused.headers
    return answer


def _impersonated(request: Request) -> Request:
    """`kubectl --as`: who may everything may also be somebody else."""
    name, user = request.header("impersonate-user"), request.user
    if not name or user is None:
        return request
    if not tokens.allowed(user.username, user.groups):
        raise tokens.denied(user, "impersonate", "users", "", name=name)
    groups = tuple(value for key, value in request.headers if key == "impersonate-group")
    return msgspec.structs.replace(request, user=User(name, groups=(*groups, "system:authenticated")))


class Api:
    """`kubelets`: the TLS context for connections to kubelet endpoints. `address`: ours, as clients are told."""

    def __init__(
        self, registry: Registry, reads: Reads, of_tokens: Tokens, kubelets: ssl.SSLContext, address: str = ""
    ) -> None:
        self._registry = registry
        self._store = registry.store
        self._reads = reads
        self._tokens = of_tokens
        self._kubelets = kubelets
        self.address = address

    @property
    def _catalogue(self) -> Catalogue:
        return self._registry.catalogue

    def find(self, plural: str, namespace: str, name: str) -> Json | None:
        """For tokens: is what they are bound to still there."""
        entry = self._store.latest((plural, namespace, name))
        return entry.object() if entry is not None else None

    def user(self, token: str) -> User | None:
        return self._tokens.authenticate(token, self.find)

    async def answer(self, request: Request) -> Answer:
        """Never raises because of what was asked."""
        try:
            return await self._answer(request)
        except Refused as refused:
            return refusal(refused)
        except NoSuchPath:
            return Answer(404, b"404 page not found\n", "text/plain; charset=utf-8")
        except Exception as error:  # noqa: BLE001 - a bug of ours costs one request, not all that runs here
            return refusal(Refused(500, "InternalError", f"Internal error occurred: {error!r}"))

    async def _answer(self, request: Request) -> Answer:
        path, _, query = request.target.partition("?")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] in _HEALTH:
            return Answer(200, b"ok", "text/plain; charset=utf-8")
        request = _impersonated(request)
        if request.user is None:
            raise status.unauthorized()
        if parts == ["openapi", "v2"] and "protobuf" in request.header("accept"):
            body = openapi_v2.document(self._catalogue, discovery.VERSION["gitVersion"])
            return Answer(200, body, openapi_v2.CONTENT_TYPE)
        pairs = tuple(parse_qsl(query, keep_blank_values=True))
        if parts[0] not in ("api", "apis") or len(parts) < (3 if parts[0] == "api" else 4):
            return self._discovered(request, parts)
        place = self._place(parts)
        queried = dict(pairs)
        form = forms.negotiate(request.header("accept"), queried.get("includeObject", ""))
        return await self._resource(Call(request, place, queried, pairs, form))

    # --- discovery ---

    def _discovered(self, request: Request, parts: list[str]) -> Answer:
        if request.method not in ("GET", "HEAD"):
            raise status.method_not_allowed()
        aggregated = any(
            one.get("as") == discovery.AGGREGATED and one.get("v") == "v2"
            for one in forms.media_types(request.header("accept"))
        )
        catalogue = self._catalogue
        match parts:
            case ["api"] if aggregated:
                return _json(discovery.aggregated_core(catalogue), content_type=_DISCOVERY_TYPE)
            case ["apis"] if aggregated:
                return _json(discovery.aggregated_groups(catalogue), content_type=_DISCOVERY_TYPE)
        found = self._document(parts)
        if found is None:
            raise NoSuchPath(f"/{'/'.join(parts)}")
        return _json(found)

    def _document(self, parts: list[str]) -> Json | None:  # noqa: PLR0911 - one for each path
        catalogue = self._catalogue
        match parts:
            case ["version"]:
                return discovery.VERSION
            case ["api"]:
                return discovery.api_versions(self.address)
            case ["apis"]:
                return discovery.groups(catalogue)
            case ["api", version]:
                return discovery.resources(catalogue, "", version)
            case ["apis", group]:
                return discovery.group(catalogue, group)
            case ["apis", group, version]:
                return discovery.resources(catalogue, group, version)
            case ["openapi", "v2"]:
                return discovery.openapi_v2(catalogue)
            case ["openapi", "v3"]:
                return discovery.openapi_index(catalogue)
            case ["openapi", "v3", "api", version]:
                return discovery.openapi(catalogue, "", version)
            case ["openapi", "v3", "apis", group, version]:
                return discovery.openapi(catalogue, group, version)
            case [""]:
                return {"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}
        return None

    # --- resources ---

    def _place(self, parts: list[str]) -> Place:
        group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and not (not group and rest[2] in ("status", "finalize")):
            namespace, rest = rest[1], rest[2:]
        resource = self._catalogue.find(group, version, rest[0])
        if resource is None or (namespace and not resource.namespaced):
            raise NoSuchPath(f"/{'/'.join(parts)}")
        name = rest[1] if len(rest) > 1 else ""
        subresource = "/".join(rest[2:])
        if (name and resource.namespaced and not namespace) or any(not part for part in rest):
            raise NoSuchPath(f"/{'/'.join(parts)}")
        if subresource and resource.sub(rest[2]) is None:
            raise NoSuchPath(f"/{'/'.join(parts)}")
        return Place(resource, namespace, name, subresource)

    async def _resource(self, call: Call) -> Answer:  # noqa: PLR0911 - one for each verb
        place = call.place
        self._may(call)
        if not place.resource.storage and place.resource.name != "bindings":
            return self._review(call)
        if place.subresource and place.subresource != "status":
            return await self._subresource(call)
        match call.request.method, bool(place.name):
            case "GET" | "HEAD", named:
                return self._read(call, named=named)
            case "POST", False if "create" in place.resource.verbs:
                return await self._create(call)
            case "PUT", True:
                body = self._body(call.request)
                return await self._done(call, self._registry.replace(place, body, call.options()))
            case "PATCH", True:
                return await self._patch(call)
            case "DELETE", True if not place.subresource:
                return await self._delete(call)
            case "DELETE", False if "deletecollection" in place.resource.verbs:
                return await self._delete_all(call)
        raise status.method_not_allowed()

    def _may(self, call: Call) -> None:
        place, user = call.place, call.request.user
        resource = place.resource
        verb = self._verb(call)
        plural = f"{resource.name}/{place.subresource}" if place.subresource else resource.name
        if user is None or not tokens.may(user, verb, plural, resource.group):
            raise tokens.denied(
                user or User(""), verb, plural, resource.group, namespace=place.namespace, name=place.name
            )

    def _verb(self, call: Call) -> str:
        method, named = call.request.method, bool(call.place.name)
        match method:
            case "GET" | "HEAD":
                return "watch" if call.flag("watch") else "get" if named else "list"
            case "DELETE":
                return "delete" if named else "deletecollection"
        return {"POST": "create", "PUT": "update", "PATCH": "patch"}.get(method, method.lower())

    def _read(self, call: Call, *, named: bool) -> Answer:
        place = call.place
        if "list" not in place.resource.verbs:
            raise status.method_not_allowed()
        if call.flag("watch"):
            return Answer(lines=self._reads.watch(place, call.listing(), call.form))
        if not named:
            return Answer(200, self._reads.list(place, call.listing(), call.form))
        entry = self._store.get(place.key)
        if entry is None:
            raise status.not_found(place.resource.name, place.resource.group, place.name)
        return Answer(200, forms.one(place.resource, entry.raw, call.form, self._registry.wall_s()))

    def _body(self, request: Request, *, required: bool = True) -> Json:
        content_type = request.header("content-type").partition(";")[0].strip().lower()
        if not request.body and not required:
            return {}
        if content_type == protobuf.CONTENT_TYPE:
            return protobuf.decode(request.body)
        if content_type not in ("", JSON):
            raise status.unsupported_media([JSON, protobuf.CONTENT_TYPE])
        return self._decoded(request.body)

    def _decoded(self, body: bytes) -> Json:
        try:
            found = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise status.bad_request(f"the object provided is unrecognized (must be of JSON): {error}") from None
        if not isinstance(found, dict) or not isinstance(found.get("metadata", {}), dict | None):
            raise status.bad_request("the object provided is unrecognized: it is no JSON object with metadata")
        return found

    async def _create(self, call: Call) -> Answer:
        place, body = call.place, self._body(call.request)
        if place.resource.name == "bindings":
            pods = self._catalogue.find("", "v1", "pods")
            name = (body.get("metadata") or {}).get("name", "")
            return await self._bind(Place(pods or place.resource, place.namespace, name), body, call)
        if place.resource.namespaced and not place.namespace:
            raise status.method_not_allowed()
        done = self._registry.create(place.resource, place.namespace, body, call.options())
        return await self._done(call, done)

    async def _done(self, call: Call, done: Done) -> Answer:
        await done.durable()
        raw = done.write.change.entry.raw if done.write is not None else msgspec.json.encode(done.thing)
        body = forms.one(call.place.resource, raw, call.form, self._registry.wall_s())
        warnings = [("Warning", f"299 - {msgspec.json.encode(text).decode()}") for text in done.warnings]
        return Answer(201 if done.created else 200, body, headers=warnings)

    async def _patch(self, call: Call) -> Answer:
        content_type = call.request.header("content-type").partition(";")[0].strip().lower()
        accepted = [patch.JSON_PATCH, patch.MERGE_PATCH]
        if call.place.resource.custom is None:
            accepted.append(patch.STRATEGIC_PATCH)
        if content_type not in accepted:
            raise status.unsupported_media(accepted)
        try:
            body = msgspec.json.decode(call.request.body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise status.bad_request(f"error decoding patch: {error}") from None
        return await self._done(call, self._registry.patch(call.place, content_type, body, call.options()))

    # --- deletion ---

    def _deletion(self, call: Call, body: Json) -> Deletion:
        asked = body.get("preconditions") or {}
        grace = body.get("gracePeriodSeconds")
        if grace is None and "gracePeriodSeconds" in call.query:
            grace = call.number("gracePeriodSeconds")
        if grace is not None and not isinstance(grace, int):
            raise status.bad_request("gracePeriodSeconds must be a whole number")
        dry = call.options().dry or body.get("dryRun") == ["All"]
        return Deletion(grace, asked.get("uid") or "", asked.get("resourceVersion") or "", dry)

    async def _delete(self, call: Call) -> Answer:
        place = call.place
        how = self._deletion(call, self._body(call.request, required=False))
        done = self._registry.delete(place.resource, place.namespace, place.name, how)
        if not done.deleted or place.resource.returns_deleted:
            return await self._done(call, done)
        await done.durable()
        details: Json = {"name": place.name}
        if place.resource.group:
            details["group"] = place.resource.group
        details |= {"kind": place.resource.name, "uid": done.thing["metadata"]["uid"]}
        return _json(status.success(details))

    async def _delete_all(self, call: Call) -> Answer:
        place = call.place
        how = self._deletion(call, self._body(call.request, required=False))
        selected = self._reads.selected(place, self._reads.selector(place, call.listing()))
        for entry in selected:
            if self._store.latest(entry.key) is not None:
                last = self._registry.delete(place.resource, entry.key[1], entry.key[2], how)
                await last.durable()
        metadata = {"resourceVersion": str(self._store.revision)}
        return Answer(200, forms.many(place.resource, selected, call.form, metadata, self._registry.wall_s()))

    # --- subresources and reviews ---

    async def _subresource(self, call: Call) -> Answer:  # noqa: PLR0911 - one for each
        place, method = call.place, call.request.method
        match place.resource.name, place.subresource.partition("/")[0]:
            case "pods", sub if sub in _PROXIED and method in _GETS[sub]:
                return self._proxied(call)
            case "nodes", "proxy":
                return self._proxied(call)
            case "pods", "binding" if method == "POST":
                return await self._bind(place, self._body(call.request), call)
            case "pods", "eviction" if method == "POST":
                return await self._evict(call)
            case "pods", "ephemeralcontainers":
                return self._ephemeral(call)
            case "serviceaccounts", "token" if method == "POST":
                account = self._registry.latest(place.resource, place.namespace, place.name).object()
                return _json(self._tokens.request(self._body(call.request), account, self.find), 201)
            case "namespaces", "finalize" if method == "PUT":
                return await self._done(call, self._registry.replace(place, self._body(call.request), call.options()))
        raise status.method_not_allowed()

    async def _bind(self, place: Place, body: Json, call: Call) -> Answer:
        await self._registry.bind(place, body, call.options()).durable()
        return _json(status.success(code=201), 201)

    async def _evict(self, call: Call) -> Answer:
        place, body = call.place, self._body(call.request)
        how = self._deletion(call, body.get("deleteOptions") or {})
        await self._registry.delete(place.resource, place.namespace, place.name, how).durable()
        return _json(status.success(code=201), 201)

    def _ephemeral(self, call: Call) -> Answer:
        if call.request.method in ("GET", "HEAD"):
            return self._read(call, named=True)
        self._registry.latest(call.place.resource, call.place.namespace, call.place.name)
        why = "Forbidden: ephemeral containers can't run on edge nodes"
        raise status.invalid(
            "Pod", "", call.place.name, [status.Cause("spec.ephemeralContainers", why, "FieldValueForbidden")]
        )

    def _proxied(self, call: Call) -> Answer:
        place, request = call.place, call.request
        thing = self._registry.latest(place.resource, place.namespace, place.name).object()
        sub = (
            place.subresource.removeprefix("proxy").lstrip("/") if place.resource.name == "nodes" else place.subresource
        )

        async def pass_on(client: trio.abc.Stream, rest: bytes) -> None:
            asked = kubelet_proxy.Asked(request.method, sub, call.pairs, request.headers, rest)
            if place.resource.name == "nodes":
                await kubelet_proxy.to_node(asked, client, thing, self._kubelets)
                return
            entry = self._store.get(("nodes", "", thing["spec"].get("nodeName", "")))
            node = entry.object() if entry is not None else None
            await kubelet_proxy.to_pod(asked, client, thing, node, self._kubelets)

        return Answer(takeover=pass_on)

    def _review(self, call: Call) -> Answer:
        if call.request.method != "POST" or call.place.name:
            raise status.method_not_allowed()
        body = self._body(call.request)
        body["kind"] = call.place.resource.kind
        if body["kind"] == "TokenReview":
            return _json(self._tokens.review(body, self.find), 201)
        return _json(tokens.access_review(body, call.request.user or User("")), 201)
