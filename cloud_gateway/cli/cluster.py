"""Which cluster a command means, and one conversation with it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_config import Endpoint, from_kubeconfig, in_cluster
from tinyedge.cli.errors import EXIT_UNREACHABLE, CliError

T = TypeVar("T")


def endpoint(args: argparse.Namespace) -> Endpoint:
    """--sandbox, else --kubeconfig, else $KUBECONFIG, else the cluster that this runs in, else ~/.kube/config."""
    if args.sandbox:
        file = Path(args.sandbox) / "kubeconfig"
        if not file.exists():
            remedy = f"start it: tinyedge-gateway run --sandbox {args.sandbox}"
            raise CliError(f"there is no sandbox in {args.sandbox}", "", remedy, code=EXIT_UNREACHABLE)
        return from_kubeconfig(file)
    named = args.kubeconfig or os.environ.get("KUBECONFIG", "")
    if named:
        return from_kubeconfig(named, args.context)
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster()
    home = Path.home() / ".kube" / "config"
    if home.exists():
        return from_kubeconfig(home, args.context)
    raise CliError("no cluster is named", "", "name it: --kubeconfig FILE, or --sandbox DIR", code=EXIT_UNREACHABLE)


def talk(args: argparse.Namespace, say: Callable[[Kube], Awaitable[T]]) -> T:
    """Run one conversation with the cluster that is meant."""

    async def run() -> T:
        async with Kube(endpoint(args), user_agent="tinyedge-gateway-cli") as kube:
            return await say(kube)

    return trio.run(run)
