"""Every command of tinyedge-gateway, in one table: the parser and the check of docs/gateway.md read it."""

from __future__ import annotations

from typing import NamedTuple

from cloud_gateway.config import DEFAULT_LISTEN, DEFAULT_METRICS, DEFAULT_NAMESPACE, DEFAULT_SANDBOX


class Option(NamedTuple):
    """`value` names the value; without one it is a flag. `many`: may be given several times."""

    flags: tuple[str, ...]
    help: str
    value: str = ""
    choices: tuple[str, ...] = ()
    many: bool = False
    default: str = ""

    @property
    def name(self) -> str:
        return self.flags[-1].lstrip("-").replace("-", "_")


class Argument(NamedTuple):
    """`nargs` as argparse has it."""

    name: str
    help: str
    nargs: str = ""


class Command(NamedTuple):
    """`name` is one word or two; `module` of this package has `run(args) -> int`."""

    name: str
    module: str
    help: str
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    examples: tuple[str, ...] = ()


KUBECONFIG = Option(("--kubeconfig",), "reach Kubernetes as this kubeconfig says", "FILE")
CONTEXT = Option(("--context",), "context of the kubeconfig (default: its current one)", "NAME")
SANDBOX = Option(("--sandbox",), "the sandbox that keeps its files in this folder", "DIR")
NAMESPACE = Option(
    ("-n", "--namespace"),
    f"namespace of the gateway and of its two Secrets (default {DEFAULT_NAMESPACE})",
    "NAME",
    default=DEFAULT_NAMESPACE,
)
JSON = Option(("-o", "--output"), "print as JSON, for programs", "FORMAT", ("json",))
LIVE = Option(
    ("--metrics",),
    f"where a running gateway shows its numbers (default {DEFAULT_METRICS})",
    "ADDR:PORT",
    default=DEFAULT_METRICS,
)
CLUSTER = (KUBECONFIG, CONTEXT, SANDBOX, NAMESPACE)
NODE = Argument("name", "name of the node")

RUN = (
    KUBECONFIG,
    CONTEXT,
    Option(("--sandbox",), "be the cluster as well: a small Kubernetes-compatible API server, its files here", "DIR"),
    Option(
        ("--sandbox-listen",),
        f"address of the sandbox's API server (default {DEFAULT_SANDBOX})",
        "ADDR:PORT",
        default=DEFAULT_SANDBOX,
    ),
    Option(
        ("--listen",), f"address for the nodes' links (default {DEFAULT_LISTEN})", "ADDR:PORT", default=DEFAULT_LISTEN
    ),
    Option(
        ("--kubelet-ports",),
        "serve logs, exec, attach, port-forward and stats of each node on a port of its own out of these; "
        "without it there are none",
        "FIRST-LAST",
    ),
    Option(
        ("--kubelet-listen",),
        "address that those ports listen on (default 0.0.0.0: all)",
        "ADDR",
        default="0.0.0.0",  # noqa: S104
    ),
    Option(
        ("--kubelet-address",),
        "address at which the API server reaches those ports (default: $POD_IP, else 127.0.0.1)",
        "ADDR",
    ),
    Option(("--kubelet-cert",), "serving certificate of those ports, PEM (default: one by the gateway's CA)", "FILE"),
    Option(("--kubelet-key",), "its key, PEM", "FILE"),
    Option(
        ("--kubelet-client-ca",),
        "CA of client certificates there, PEM (default: the cluster's, from extension-apiserver-authentication)",
        "FILE",
    ),
    NAMESPACE,
    Option(("--replica",), "name of this gateway among its replicas (default: its host name)", "NAME"),
    Option(
        ("--metrics",),
        f"address of /metrics, /healthz and /readyz, plain HTTP; none: nowhere (default {DEFAULT_METRICS})",
        "ADDR:PORT",
        default=DEFAULT_METRICS,
    ),
    Option(("--heartbeat",), "seconds between heartbeats of a link (default 30)", "SECONDS", default="30"),
    Option(
        ("--autonomy",),
        "how long a node may be away and keep its pods, unless it says otherwise: unlimited, none, or such as 72h "
        "(default unlimited)",
        "WINDOW",
        default="unlimited",
    ),
    Option(("--hold",), "keep pods with this label at the gateway, away from nodes", "KEY[=VALUE]", many=True),
    Option(
        ("--hold-daemonsets",),
        "keep DaemonSet pods of this namespace that tolerate everything at the gateway; none: of no namespace "
        "(default kube-system)",
        "NAMESPACE",
        many=True,
    ),
    Option(
        ("--sink",),
        "where readings go: file:///DIRECTORY, http(s)://HOST/PATH or mqtt(s)://HOST/TOPIC; without one they stay at "
        "their nodes",
        "URL",
        many=True,
    ),
    Option(
        ("--upgrade-source",),
        "folder or URL of the files that NodeUpgradeJobs name; without it there are none",
        "DIR|URL",
    ),
    Option(("--rest",), "call rules over REST at this address, with TLS; without it nobody can", "ADDR:PORT"),
    Option(("--rest-cert",), "serving certificate there, PEM (default: one by the gateway's CA)", "FILE"),
    Option(("--rest-key",), "its key, PEM", "FILE"),
    Option(
        ("--rest-tokens",),
        "lines of NAME TOKEN: who may call every rule, beside whom the API server knows and lets",
        "FILE",
    ),
    Option(
        ("--outbound-allow",),
        "where rules may lead: HOST, ADDRESS or NETWORK/BITS, with or without :PORT; none: nowhere (default *: "
        "anywhere but loopback, link-local and the API server)",
        "WHERE",
        many=True,
    ),
    Option(
        ("--device-status",),
        "where the values of devices are written: the DeviceStatus, the status of the Device as older clients of "
        "KubeEdge want it, or both, which is two writes (default both)",
        "WHERE",
        ("both", "devicestatus", "device"),
    ),
    Option(("--cert-days",), "days that a node's certificate is good for (default 90)", "DAYS", default="90"),
    Option(
        ("--grace-days",),
        "days after its end in which it still gets its node a new one; 0: none (default 400)",
        "DAYS",
        default="400",
    ),
    Option(("--qps",), "requests per second to Kubernetes in the long run (default 200)", "NUMBER", default="200"),
    Option(("--burst",), "requests to Kubernetes at once (default 400)", "NUMBER", default="400"),
    Option(("--log-format",), "of the log on standard error (default json)", "FORMAT", ("json", "human")),
    Option(
        ("--log-level",), "least level that is logged (default info)", "LEVEL", ("debug", "info", "warning", "error")
    ),
)

COMMANDS: tuple[Command, ...] = (
    Command(
        "run",
        "run",
        "run the gateway, in the foreground",
        (),
        RUN,
        (
            "tinyedge-gateway run --sandbox /var/lib/tinyedge-sandbox --kubelet-ports 10350-10359",
            "tinyedge-gateway run --kubeconfig ~/.kube/config --kubelet-ports 10350-11349 --kubelet-address 10.0.0.7",
        ),
    ),
    Command(
        "token create",
        "identity",
        "make a token with which one node can join, once",
        (),
        (
            Option(("--node",), "for the node of this name", "NAME"),
            Option(("--pattern",), "for a node of any name like this that is not taken, such as gate-*", "PATTERN"),
            Option(
                ("--ttl",), "how long it can be used, such as 90m, 24h or 7d (default 24h)", "DURATION", default="24h"
            ),
            Option(("--label",), "label that the Node gets", "KEY=VALUE", many=True),
            Option(("--taint",), "taint that the Node gets", "KEY[=VALUE]:EFFECT", many=True),
            *CLUSTER,
            JSON,
        ),
        ("tinyedge-gateway token create --node gate-7 --ttl 24h", "tinyedge-gateway token create --pattern 'gate-*'"),
    ),
    Command("node list", "identity", "list who has joined", (), (*CLUSTER, JSON)),
    Command(
        "node revoke",
        "identity",
        "make a node's certificates void; its session ends at once and its name stays taken",
        (NODE,),
        (*CLUSTER, JSON),
        ("tinyedge-gateway node revoke gate-7",),
    ),
    Command(
        "node replace",
        "identity",
        "let another machine take a node's name, once, with any token for it",
        (NODE,),
        (*CLUSTER, JSON),
        ("tinyedge-gateway node replace gate-7 && tinyedge-gateway token create --node gate-7",),
    ),
    Command(
        "node delete",
        "identity",
        "forget a node: its certificates are void, its name is free, its Node is deleted with its pods",
        (NODE,),
        (*CLUSTER, JSON),
    ),
    Command("nodes", "look", "list edge nodes, and which are connected since when", (), (*CLUSTER, LIVE, JSON)),
    Command("top", "look", "show who uses CPU and memory of edge nodes", (), (*CLUSTER, JSON)),
    Command("status", "look", "show how the gateway is: replicas, nodes, live numbers", (), (*CLUSTER, LIVE, JSON)),
    Command("version", "look", "show the version", (), (JSON,)),
)
BY_NAME = {command.name: command for command in COMMANDS}
