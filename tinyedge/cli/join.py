"""`tinyedge join` and `leave`: by the daemon where one runs, else by this program itself."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tinyedge.cli.client import Client
from tinyedge.cli.errors import EXIT_FORBIDDEN, EXIT_USAGE, CliError
from tinyedge.cli.output import client, show, structured
from tinyedge.errors import BadInput, PeerError, TinyEdgeError

if TYPE_CHECKING:
    from tinyedge.config import Config
    from tinyedge.store.node_identity import IdentityFiles

ANSWER_S = 300  # several connections, some of which may have to be given up
_TOKEN_CHARS_MAX = 16 * 1024
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def run(args: argparse.Namespace) -> int:
    message = _join(args) if args.command == "join" else _leave(args)
    show(structured({"message": message}, args.output) if args.output else message)
    return 0


def _join(args: argparse.Namespace) -> str:
    from tinyedge.adapters.dial import address
    from tinyedge.protocol.joining import read_token

    token = _token(args.token)
    address(args.url)
    read_token(token)
    body = {
        "url": args.url,
        "token": token,
        "name": args.name or "",
        "labels": dict(map(_label, args.label)),
        "taints": list(map(_taint, args.taint)),
    }
    api = client(args)
    if api.runs():
        return _asked(api, "POST", (), body)
    return _join_here(args, body)


def _leave(args: argparse.Namespace) -> str:
    api = client(args)
    try:
        if api.runs():
            return _asked(api, "DELETE", [("local", "1")] if args.local else ())
        return _leave_here(args)
    except (PeerError, CliError) as error:
        if args.local or (isinstance(error, CliError) and error.reason != "GatewayError"):
            raise
        remedy = "; ".join(filter(None, (error.remedy, f"or forget it on this side only: {_LOCAL}")))
        raise CliError(error.what, error.why, remedy) from None


_LOCAL = "tinyedge leave --local"


def _token(given: str | None) -> str:
    if not given:
        remedy = "make one at the gateway: tinyedge-gateway token create; or pass it on standard input: --token -"
        raise CliError("join: a token is needed (--token)", "", remedy, code=EXIT_USAGE)
    return sys.stdin.read(_TOKEN_CHARS_MAX).strip() if given == "-" else str(given)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise CliError(f"--label {text} is not KEY=VALUE", "", "such as site=north", code=EXIT_USAGE)
    return key, value


def _taint(text: str) -> dict[str, str]:
    """`key=value:Effect` or `key:Effect`, as kubectl has it."""
    what, colon, effect = text.rpartition(":")
    key, _, value = what.partition("=")
    if not colon or not key or effect not in _EFFECTS:
        remedy = f"such as site=north:NoSchedule; effects are {', '.join(_EFFECTS)}"
        raise CliError(f"--taint {text} is not KEY=VALUE:EFFECT", "", remedy, code=EXIT_USAGE)
    return {"key": key, "value": value, "effect": effect}


# --- by the daemon -----------------------------------------------------------------------------------


def _asked(api: Client, method: str, params: Sequence[tuple[str, str]], body: Any = None) -> str:
    told = b"".join(api.stream(method, "/v1/join", params, body, wait_s=ANSWER_S))
    return str(json.loads(told)["message"])


# --- without one -------------------------------------------------------------------------------------


def _opened(args: argparse.Namespace) -> tuple[Config, IdentityFiles]:
    """The configuration, and the folder of the identity, which must be writable."""
    from tinyedge import config
    from tinyedge.store.node_identity import IdentityFiles

    loaded = config.load(args.config, args.set, [])
    folder = os.path.dirname(loaded.store.path)
    try:
        os.makedirs(folder, exist_ok=True)
        may_write = os.access(folder, os.W_OK | os.X_OK)
        why = "you may not write there"
    except OSError as error:
        may_write, why = False, os.strerror(error.errno or 0)
    if not may_write:
        raise CliError(f"can't keep the identity in {folder}", why, "use sudo", code=EXIT_FORBIDDEN)
    return loaded, IdentityFiles(folder)


def _join_here(args: argparse.Namespace, body: dict[str, Any]) -> str:
    import msgspec
    import trio

    from tinyedge.adapters import host, identity, join
    from tinyedge.protocol.joining import Taint, read_token

    config, files = _opened(args)
    machine = identity.machine_digest()
    host_name = config.node.name or socket.gethostname().lower()
    name = body["name"] or read_token(body["token"]).node or host_name
    if config.node.name and name != config.node.name:
        remedy = f"{config.node.name}, as the configuration names this node (node.name)"
        raise BadInput("the node's name", name, remedy)
    wanted = join.Wanted(
        config.cloud.url or body["url"],
        body["token"],
        body["name"],
        body["labels"],
        msgspec.convert(body["taints"], list[Taint]),
        config.cloud.proxy,
    )

    async def make_key() -> identity.Key:
        return await identity.make_key(files.pending_key())

    async def keep_key(key: str) -> None:
        files.keep_pending_key(key)  # there is nothing else that could go on meanwhile

    async def ask() -> join.Joined:
        return await join.join(
            wanted,
            machine=machine,
            host_name=host_name,
            make_key=make_key,
            keep_key=keep_key,
            check_time=host.WallClock().trusted(),
        )

    joined = trio.run(ask)
    saved = files.save(
        gateway=body["url"], machine=machine, answer=joined.answer, key=joined.key, joined_s=int(time.time())
    )
    return f"{saved.node} has joined {body['url']}; it connects once the daemon runs (systemctl start tinyedge)"


def _leave_here(args: argparse.Namespace) -> str:
    import trio

    from tinyedge.adapters import host, identity, join

    config, files = _opened(args)
    try:
        found = files.load()
    except TinyEdgeError as error:
        if not args.local:
            raise CliError(error.what, error.why, f"{error.remedy}, or forget it: {_LOCAL}") from None
        files.forget()
        return "the identity is gone"
    if found is None:
        raise CliError("this node has not joined a gateway", "", f"there is no identity in {files.folder}")
    url = config.cloud.url or found.gateway

    async def tell() -> None:
        await join.leave(
            url,
            proxy=config.cloud.proxy,
            cas=found.cas,
            pem=found.pem,
            machine=identity.machine_digest(),
            check_time=host.WallClock().trusted(),
        )

    if not args.local:
        trio.run(tell)
    files.forget()
    return f"{found.node} has left {url}" if not args.local else f"this machine is no longer {found.node} of {url}"
