"""`tinyedge-gateway token create` and `node …`: who may join, and who has.

They read and write the gateway's two Secrets; no gateway need run. One that runs notices at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Awaitable
from typing import Any

from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.adapters.joining import Joining
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_secrets import KubeSecrets
from cloud_gateway.adapters.kube_types import LEASES, NODES, PODS, KubeError
from cloud_gateway.cli.cluster import talk
from cloud_gateway.cli.output import show, show_json
from cloud_gateway.core.authority import Refused
from cloud_gateway.core.translate import EDGE_LABEL
from cloud_gateway.core.translate import LEASES as LEASE_NAMESPACE
from tinyedge.cli.errors import CliError
from tinyedge.cli.text import duration, parse_duration, table
from tinyedge.errors import BadInput
from tinyedge.protocol.joining import Taint

Json = dict[str, Any]
DAY_S = 86400


def run(args: argparse.Namespace) -> int:
    if args.command == "token create":
        return _create_token(args)
    if args.command == "node list":
        return _list(args)
    return _change(args)


async def _opened(kube: Kube, namespace: str) -> tuple[IdentityStore, Joining]:
    store = IdentityStore(KubeSecrets(kube), namespace, wall_s=time.time)
    try:
        await store.open()
    except KubeError as error:
        if not error.not_found:
            raise
        remedy = "install the gateway (docs/gateway.md), or name its namespace: --namespace NAME"
        raise CliError(f"there is no namespace {namespace}", error.message, remedy) from None

    async def foreign(name: str) -> bool:
        return False  # asked at a join only

    return store, Joining(store, wall_s=time.time, foreign=foreign)


def _create_token(args: argparse.Namespace) -> int:
    ttl_s = parse_duration(args.ttl)
    labels = dict(_pair(one, "--label") for one in args.label)
    taints = tuple(_taint(one) for one in args.taint)

    async def say(kube: Kube) -> str:
        _, joining = await _opened(kube, args.namespace)
        return joining.make_token(node=args.node, pattern=args.pattern, ttl_s=ttl_s, labels=labels, taints=taints)

    token = talk(args, say)
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + ttl_s))
    if args.output:
        who = {"node": args.node} if args.node else {"pattern": args.pattern}
        show_json({"token": token, **who, "expires": expires})
        return 0
    show(token)
    whom = f"the node {args.node}" if args.node else f"one node with a name like {args.pattern}"
    hint = f"for {whom}, once, until {expires}; there: tinyedge join wss://GATEWAY:8443 --token …"
    show(hint, file=sys.stderr)
    return 0


def _pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise BadInput(flag, text, "KEY=VALUE")
    return key, value


def _taint(text: str) -> Taint:
    rest, colon, effect = text.rpartition(":")
    key, _, value = rest.partition("=")
    if not key or not colon:
        raise BadInput("--taint", text, "KEY[=VALUE]:EFFECT, such as site=roof:NoSchedule")
    return Taint(key=key, value=value, effect=effect)


def _list(args: argparse.Namespace) -> int:
    async def say(kube: Kube) -> list[Json]:
        store, _ = await _opened(kube, args.namespace)
        state = store.state
        return [
            {
                "name": name,
                "state": _state(revoked=bool(bound.revoked_s), replace=name in state.replace),
                "since": bound.since_s,
                "machine": bound.machine,
                **({"revoked": bound.revoked_s} if bound.revoked_s else {}),
            }
            for name, bound in sorted(state.bindings.items())
        ]

    found = talk(args, say)
    if args.output:
        show_json({"items": found})
        return 0
    if not found:
        show("No node has joined yet: tinyedge-gateway token create --node NAME")
        return 0
    now = time.time()
    rows = [(one["name"], one["state"], one["machine"][:12] or "-", duration(now - one["since"])) for one in found]
    show(table(("NAME", "STATE", "MACHINE", "JOINED"), rows))
    return 0


def _state(*, revoked: bool, replace: bool) -> str:
    if replace:
        return "Replaceable"
    return "Revoked" if revoked else "Joined"


def _change(args: argparse.Namespace) -> int:
    verb = args.command.partition(" ")[2]

    async def say(kube: Kube) -> None:
        _, joining = await _opened(kube, args.namespace)
        if verb == "delete":
            await _delete(kube, joining, args.name)
        else:
            await {"revoke": joining.revoke, "replace": joining.replace}[verb](args.name)

    talk(args, say)
    if args.output:
        show_json({"name": args.name, "done": verb})
        return 0
    show(
        {
            "revoke": f"{args.name} is revoked. To let it in again: tinyedge-gateway node replace {args.name}",
            "replace": f"{args.name} may be joined anew, once: tinyedge-gateway token create --node {args.name}",
            "delete": f"{args.name} is deleted.",
        }[verb]
    )
    return 0


async def _delete(kube: Kube, joining: Joining, name: str) -> None:
    """The binding first: a gateway that runs would make the Node again. After a failure half-way a second call takes
    what is left."""
    unknown: Refused | None = None
    try:
        await joining.delete(name)
    except Refused as refused:
        unknown = refused
    if not await _delete_node(kube, name) and unknown is not None:
        raise unknown


async def _delete_node(kube: Kube, name: str) -> bool:
    """What the cluster has of an edge node, its pods too: nobody is there to confirm their end. A Node that is no edge
    node stays, with all that is its own; False then, or when there is none."""
    try:
        node = await kube.get(NODES, name, metadata_only=True)
    except KubeError as error:
        if not error.not_found:
            raise
        return False
    if EDGE_LABEL not in (node["metadata"].get("labels") or {}):
        return False
    await _gone(kube.delete(NODES, name, uid=node["metadata"]["uid"]))
    await _gone(kube.delete(LEASES, name, LEASE_NAMESPACE))
    pods = await kube.list(PODS, fields=f"spec.nodeName={name}", metadata_only=True)
    for meta in (pod["metadata"] for pod in pods):
        await _gone(kube.delete(PODS, meta["name"], meta["namespace"], uid=meta["uid"], grace_s=0))
    return True


async def _gone(deleting: Awaitable[object]) -> None:
    """Somebody else, such as a gateway that has noticed, may have been faster; and what is there now is another one."""
    try:
        await deleting
    except KubeError as error:
        if error.status not in (404, 409):
            raise
