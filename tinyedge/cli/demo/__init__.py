"""`tinyedge demo`: a cluster of one process and a node in a scratch folder; the cloud goes, a pump overheats, the power
goes, everything comes back. Ends by itself.

No root, no cluster, no containerd: pods run as plain processes, the cluster is the gateway's sandbox. What is shown
is the ordinary daemon and the ordinary gateway with their ordinary commands; only plugs are pulled by hand: SIGKILL.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyedge.cli.demo import story
from tinyedge.cli.demo.cluster import Cluster
from tinyedge.cli.demo.node import Node
from tinyedge.cli.demo.processes import adopt_orphans, kill_below
from tinyedge.cli.demo.pump import Pump
from tinyedge.cli.demo.words import say


def run() -> int:
    """Show it all; returns the exit code."""
    started = time.monotonic()
    say("tinyedge demo: a Kubernetes API and one node in a scratch folder; no root, no containerd, no network.")
    say("Its pods run as plain processes of this machine (runtime.kind = process): no isolation. On a gateway the")
    say("same pods run in containerd.")
    adopt_orphans()
    with _scratch() as scratch:
        try:
            story.tell(Cluster(scratch), Node(scratch), Pump(scratch))
        finally:
            kill_below(os.getpid())
    say(f"\nThat was all of it, in {time.monotonic() - started:.0f} s; the scratch folder is gone.")
    say("On a gateway: README.md, under 'Install'.")
    return 0


def serve(port: int, folder: str) -> int:
    """`tinyedge demo-server`: the web server of the demo, what is in `folder` on 127.0.0.1."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        server.serve_forever()
    return 0


@contextmanager
def _scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tinyedge-demo-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
