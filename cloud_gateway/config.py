"""The gateway's settings: one frozen value, made of the command line once, checked once, passed by hand."""

from __future__ import annotations

import socket
from typing import Literal

from msgspec import Struct

from cloud_gateway.core.translate import window_s
from tinyedge.errors import BadInput

DEFAULT_LISTEN = "0.0.0.0:8443"
DEFAULT_NAMESPACE = "tinyedge"
DEFAULT_METRICS = "127.0.0.1:9808"
DEFAULT_SANDBOX = "127.0.0.1:6443"

Address = tuple[str, int]


class Config(Struct, frozen=True):
    """Where Kubernetes is: `sandbox` (a folder), else `kubeconfig` (a file), else the cluster that this runs in.

    `kubelet_ports` (0, 0): no kubelet endpoints, so no logs and no exec. `autonomy` is a window such as `unlimited`,
    `72h` or `none`. `device_status`: where twins are written; `sinks`: URLs for readings;
    `upgrade_source`: a folder or URL that holds versions for nodes. `rest`: where rules are called; `outbound_allow`:
    where those may lead. Times in the unit that their name ends with."""

    kubeconfig: str = ""
    context: str = ""
    sandbox: str = ""
    sandbox_listen: Address = ("127.0.0.1", 6443)
    listen: Address = ("0.0.0.0", 8443)  # noqa: S104
    kubelet_ports: tuple[int, int] = (0, 0)
    kubelet_address: str = ""
    kubelet_listen: str = "0.0.0.0"  # noqa: S104 - the API server comes from elsewhere
    kubelet_cert: str = ""
    kubelet_key: str = ""
    kubelet_client_ca: str = ""
    namespace: str = DEFAULT_NAMESPACE
    replica: str = ""
    metrics: Address | None = ("127.0.0.1", 9808)
    heartbeat_s: int = 30
    autonomy: str = "unlimited"
    hold_daemonsets_of: tuple[str, ...] = ("kube-system",)
    hold_labels: tuple[tuple[str, str], ...] = ()
    sinks: tuple[str, ...] = ()
    upgrade_source: str = ""
    rest: Address | None = None
    rest_cert: str = ""
    rest_key: str = ""
    rest_tokens: str = ""
    outbound_allow: tuple[str, ...] = ("*",)
    device_status: Literal["both", "devicestatus", "device"] = "both"
    cert_days: int = 90
    grace_days: int = 400
    qps: float = 200
    burst: int = 400
    log_format: Literal["json", "human"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def replica_name(self) -> str:
        """The pod's name in a cluster, which is its host name."""
        return self.replica or socket.gethostname().lower()


def address(text: str, field: str) -> Address:
    """ADDR:PORT, or :PORT for all addresses. IPv6 in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise BadInput(field, text, "ADDRESS:PORT, such as 0.0.0.0:8443")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104


def ports(text: str, field: str) -> tuple[int, int]:
    """FIRST-LAST."""
    first, dash, last = text.partition("-")
    if dash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= 65535:
        return int(first), int(last)
    raise BadInput(field, text, "FIRST-LAST, such as 10350-11349: one port for each node")


def autonomy_s(text: str, field: str) -> int | None:
    """Seconds; None: unlimited."""
    try:
        return window_s(text)
    except ValueError:
        raise BadInput(field, text, "unlimited, none, or a duration such as 72h") from None
