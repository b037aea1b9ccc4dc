"""Every command with its arguments, in one table: the parser, the completions and the check of docs/cli.md read it.

Only the module of the command that is asked for is imported: most of a short command's time is imports.
"""

from __future__ import annotations

from typing import NamedTuple


class Option(NamedTuple):
    """`value` names the value; without one it is a flag. `many`: may be given several times."""

    flags: tuple[str, ...]
    help: str
    value: str = ""
    choices: tuple[str, ...] = ()
    many: bool = False

    @property
    def name(self) -> str:
        return self.flags[-1].lstrip("-").replace("-", "_")


class Argument(NamedTuple):
    """`nargs` as argparse has it; `complete` names what the shell may offer: kinds, files, or names of objects of these
    kinds. `aliases` are understood, and offered nowhere."""

    name: str
    help: str
    nargs: str = ""
    complete: str = ""
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


class Command(NamedTuple):
    """`module` has `run(args) -> int`. `rest`: what follows `--` is handed over as `args.rest`."""

    name: str
    module: str
    group: str
    help: str
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    rest: bool = False
    examples: tuple[str, ...] = ()


SOCKET = Option(("--socket",), "socket of the daemon's local API (else $TINYEDGE_SOCKET, api.socket)", "PATH")
CONFIG = Option(("--config",), "configuration file (default /etc/tinyedge/tinyedge.toml)", "FILE")
SET = Option(("--set",), "set a key of the configuration, such as node.name=gate-7", "SECTION.KEY=VALUE", many=True)
GLOBAL = (SOCKET, CONFIG)

NAMESPACE = Option(("-n", "--namespace"), "namespace (default: default)", "NAME")
ALL_NAMESPACES = Option(("-A", "--all-namespaces"), "all namespaces")
CONTAINER = Option(("-c", "--container"), "container of the pod (default: its default one, or its first)", "NAME")
JSON = Option(("-o", "--output"), "print as JSON, for programs", "FORMAT", ("json",))
JSON_YAML = Option(("-o", "--output"), "print as JSON or YAML, for programs", "FORMAT", ("json", "yaml"))
FILENAME = Option(("-f", "--filename"), "file, folder or - for standard input; YAML or JSON", "PATH", many=True)
POD = Argument("pod", "name of the pod, or pod/NAME", complete="pods")
DEVICE = Argument("name", "name of the device, or device/NAME", complete="devices")
STDIN = Option(("-i", "--stdin"), "pass standard input on")
TTY = Option(("-t", "--tty"), "give it a terminal")

KINDS = (
    *("pods", "nodes", "configmaps", "secrets", "images", "events"),
    *("devices", "devicemodels", "localrules", "rules", "ruleendpoints"),
)

LOOK, ACT, NODE, PROGRAM = "Look", "Change and enter", "This node", "The program"

COMMANDS: tuple[Command, ...] = (
    Command(
        "get",
        "get",
        LOOK,
        "list pods, nodes, configmaps, secrets, images, events, devices, devicemodels or rules",
        (
            Argument("kind", "what to list: KIND, KIND/NAME, or several kinds with commas", "", "kinds"),
            Argument("names", "only these", "*", "pods"),
        ),
        (
            NAMESPACE,
            ALL_NAMESPACES,
            Option(("-l", "--selector"), "only with these labels: a=b, a!=b, a, !a, a in (b,c)", "LABELS"),
            Option(("-o", "--output"), "another form of output", "FORMAT", ("wide", "json", "yaml", "name")),
            Option(("-w", "--watch"), "go on and show what changes"),
            Option(("--no-headers",), "leave the heading out"),
        ),
        examples=("tinyedge get pods -A", "tinyedge get pod web -o yaml", "tinyedge get events --watch"),
    ),
    Command(
        "describe",
        "describe",
        LOOK,
        "tell everything about a pod, a device or the node, with its events",
        (
            Argument("kind", "pod, device or node; or KIND/NAME", "", "kinds"),
            Argument("names", "only these", "*", "pods"),
        ),
        (NAMESPACE, JSON_YAML),
        examples=("tinyedge describe pod web", "tinyedge describe device pump-1", "tinyedge describe node"),
    ),
    Command(
        "logs",
        "logs",
        LOOK,
        "print what a container has written",
        (POD,),
        (
            NAMESPACE,
            CONTAINER,
            Option(("--all-containers",), "all containers of the pod, each line with its container's name"),
            Option(("-f", "--follow"), "go on as it writes"),
            Option(("-p", "--previous"), "the container's run before this one"),
            Option(("--tail",), "only this many lines from the end", "LINES"),
            Option(("--since",), "only what is newer than 90s, 5m, 1h30m, 2d", "DURATION"),
            Option(("--timestamps",), "each line with its time"),
            Option(("--prefix",), "each line with its pod and container"),
        ),
        examples=("tinyedge logs web -f --tail 20", "tinyedge logs web -c sidecar --previous"),
    ),
    Command(
        "top",
        "top",
        LOOK,
        "show the use of CPU and memory by pods or the node",
        (
            Argument("kind", "pods or node", "?", "", ("pods", "node"), ("pod", "po", "nodes", "no")),
            Argument("names", "only these pods", "*", "pods"),
        ),
        (
            NAMESPACE,
            ALL_NAMESPACES,
            Option(("--containers",), "each container on a line of its own"),
            Option(("--sort-by",), "order by cpu or memory", "COLUMN", ("cpu", "memory")),
            JSON,
        ),
        examples=("tinyedge top pods -A --sort-by memory", "tinyedge top node"),
    ),
    Command(
        "why",
        "why",
        LOOK,
        "explain in plain words why a pod, a device or a local rule is not as it should be, and what would help",
        (Argument("name", "a pod, device or rule: NAME, or KIND/NAME such as device/pump-1", complete="pods,devices"),),
        (NAMESPACE, JSON),
        examples=("tinyedge why web", "tinyedge why device/pump-1", "tinyedge why localrule/too-hot"),
    ),
    Command(
        "status",
        "status",
        LOOK,
        "show the node at a glance: link, store, runtime, pressure, pods, devices and their mappers",
        options=(JSON,),
    ),
    Command(
        "apply",
        "change",
        ACT,
        "make what manifests describe: pods, configmaps, secrets, devices, devicemodels, rules",
        options=(FILENAME, NAMESPACE, JSON),
        examples=("tinyedge apply -f site.yaml", "cat pod.yaml | tinyedge apply -f -"),
    ),
    Command(
        "delete",
        "change",
        ACT,
        "delete pods, configmaps, secrets, devices, devicemodels or rules",
        (
            Argument("kind", "KIND or KIND/NAME; not with -f", "?", "kinds"),
            Argument("names", "names of the objects", "*", "pods"),
        ),
        (
            FILENAME,
            NAMESPACE,
            Option(("--grace-period",), "seconds that containers get to end", "SECONDS"),
            Option(("--now",), "the same as --grace-period 1"),
            JSON,
        ),
        examples=("tinyedge delete pod web", "tinyedge delete -f site.yaml"),
    ),
    Command(
        "restart",
        "change",
        ACT,
        "stop and start a pod's containers where they stand",
        (POD,),
        (NAMESPACE, CONTAINER, JSON),
        examples=("tinyedge restart web", "tinyedge restart web -c sidecar"),
    ),
    Command(
        "release",
        "change",
        ACT,
        "let a pod, or a change of it, go on that is held",
        (Argument("pod", "name of the pod, or pod/NAME", "?", "pods"),),
        (NAMESPACE, Option(("--all",), "everything that is held on this node"), JSON),
        examples=("tinyedge release web", "tinyedge release --all"),
    ),
    Command(
        "exec",
        "exec",
        ACT,
        "run a command in a container",
        (POD,),
        (NAMESPACE, CONTAINER, STDIN, TTY),
        rest=True,
        examples=("tinyedge exec web -- ls /www", "tinyedge exec -it web -- sh"),
    ),
    Command(
        "attach",
        "exec",
        ACT,
        "join the running process of a container",
        (POD,),
        (NAMESPACE, CONTAINER, STDIN, TTY),
        examples=("tinyedge attach -it shell",),
    ),
    Command(
        "port-forward",
        "forward",
        ACT,
        "make ports of a pod reachable on this machine",
        (POD, Argument("ports", "LOCAL:REMOTE, or PORT for both; :REMOTE takes a free one", "+")),
        (NAMESPACE, Option(("--address",), "address to listen on (default 127.0.0.1)", "ADDRESS")),
        examples=("tinyedge port-forward web 8080:80",),
    ),
    Command(
        "device",
        "device",
        ACT,
        "read, write or call a device, or show what it has told lately",
        (
            Argument("action", "read, write, call or history", "", "", ("read", "write", "call", "history")),
            DEVICE,
            Argument("values", "properties (read, history), PROPERTY=VALUE (write), METHOD and these (call)", "*"),
        ),
        (
            NAMESPACE,
            Option(("--tail",), "only this many values from the end of the history (default 20)", "VALUES"),
            Option(("--clear",), "write: take back what was set on the node; the manifest's values hold again"),
            JSON,
        ),
        examples=(
            "tinyedge device read pump-1 temperature",
            "tinyedge device write pump-1 speed=80",
            "tinyedge device write pump-1 speed --clear",
            "tinyedge device call pump-1 reset speed=0",
            "tinyedge device history pump-1 temperature --tail 100",
        ),
    ),
    Command(
        "image",
        "image",
        ACT,
        "list, pull, import or remove images",
        (
            Argument("action", "ls, pull, import or rm", "", "", ("ls", "pull", "import", "rm"), ("list", "remove")),
            Argument("images", "images (pull, rm) or archives (import)", "*", "files"),
        ),
        (JSON,),
        examples=("tinyedge image import /media/usb/site.tar.zst", "tinyedge image ls"),
    ),
    Command(
        "run",
        "program",
        NODE,
        "run the node: this is the daemon",
        options=(SET, Option(("--stop-pods",), "stop all pods when the daemon is stopped (default: they go on)")),
        examples=("tinyedge run --config /etc/tinyedge/tinyedge.toml", "tinyedge run --set node.name=gate-7"),
    ),
    Command(
        "join",
        "join",
        NODE,
        "join a gateway: from then on this is a node of its Kubernetes cluster",
        (Argument("url", "address of the gateway, such as wss://gateway.example.com:8443"),),
        (
            Option(
                ("--token",),
                "what `tinyedge-gateway token create` has printed; - reads it from standard input",
                "TOKEN",
            ),
            Option(("--name",), "name of this node (default: the token's, node.name, the host name)", "NAME"),
            Option(("--label",), "a label for the Node, such as site=north", "KEY=VALUE", many=True),
            Option(("--taint",), "a taint for the Node, such as site=north:NoSchedule", "KEY=VALUE:EFFECT", many=True),
            SET,
            JSON,
        ),
        examples=("tinyedge join wss://gateway.example.com:8443 --token te1.…",),
    ),
    Command(
        "leave",
        "join",
        NODE,
        "leave the gateway: its Node is deleted there, and this node works alone",
        options=(
            Option(("--local",), "forget the gateway without telling it"),
            SET,
            JSON,
        ),
    ),
    Command(
        "upgrade",
        "upgrade",
        NODE,
        "try another version of tinyedge; it stays if it proves itself, else the one before comes back",
        (
            Argument("what", "file or URL of a version; or status, rollback, verify", "", "files"),
            Argument("file", "the file to verify", "?", "files"),
        ),
        (
            Option(("--allow-downgrade",), "take an older version than the one that runs"),
            Option(("--wait",), "wait for the end of the trial, and end as it does"),
            SET,
            JSON,
        ),
        examples=(
            "tinyedge upgrade /media/usb/tinyedge-0.2.0-arm64.run --wait",
            "tinyedge upgrade https://updates.example.com/tinyedge-0.2.0-arm64.run",
            "tinyedge upgrade status",
            "tinyedge upgrade rollback",
        ),
    ),
    Command(
        "confirm",
        "upgrade",
        NODE,
        "let an upgrade go on that waits for somebody on site",
        options=(JSON,),
    ),
    Command(
        "demo",
        "program",
        NODE,
        "show a node in a scratch folder lose its power and come back: no root, no containerd",
    ),
    Command(
        "check",
        "check",
        NODE,
        "hold configuration and machine against what tinyedge needs, with a remedy for each finding",
        options=(SET, JSON),
    ),
    Command(
        "config",
        "program",
        NODE,
        "print the configuration that is in force",
        options=(SET, JSON),
    ),
    Command(
        "doctor",
        "offline",
        NODE,
        "check a store that is not in use, and explain what is wrong with it",
        (Argument("path", "folder of the store (default: store.path)", "?", "files"),),
        (SET, JSON),
    ),
    Command(
        "inspect",
        "offline",
        NODE,
        "look into a store, read-only; also while nothing runs",
        (Argument("path", "folder of the store (default: store.path)", "?", "files"),),
        (
            SET,
            Option(("--table",), "the keys of one table, with the sizes of their values", "NAME"),
            Option(("--value",), "one stored value, such as pod/default/web; never a secret's", "TABLE/KEY"),
            Option(("--records",), "the commits in one segment of the journal", "SEGMENT"),
            JSON,
        ),
    ),
    Command(
        "blackbox",
        "offline",
        NODE,
        "read the black box: boots and their reasons, exits of pods, faults",
        (Argument("path", "folder of the store; without it the daemon is asked, and else store.path", "?", "files"),),
        (
            SET,
            Option(("--since",), "only what is newer than 90s, 5m, 1h30m, 2d", "DURATION"),
            Option(("--tail",), "only this many entries from the end", "ENTRIES"),
            JSON,
        ),
    ),
    Command(
        "collect",
        "collect",
        NODE,
        "write a support bundle: status, logs, configuration, store report; no secret's value",
        (Argument("file", "file to write (default: tinyedge-NODE-TIME.tar.gz here)", "?", "files"),),
        (
            SET,
            Option(("--tail",), "lines of log of each container (default 500)", "LINES"),
            Option(("--no-logs",), "leave the containers' logs out"),
        ),
    ),
    Command("version", "program", PROGRAM, "print the versions of this program and of the daemon", options=(JSON,)),
    Command(
        "completion",
        "completion",
        PROGRAM,
        "print a completion script for a shell",
        (Argument("shell", "bash, zsh or fish", "", "", ("bash", "zsh", "fish")),),
        examples=(
            "source <(tinyedge completion bash)",
            "tinyedge completion fish > ~/.config/fish/completions/tinyedge.fish",
        ),
    ),
)

# Not shown: the web server that the demo's pod runs, and the demo's pump.
HIDDEN = (
    Command(
        "demo-server",
        "program",
        PROGRAM,
        "serve a folder on 127.0.0.1",
        options=(Option(("--port",), "port", "PORT"), Option(("--folder",), "folder", "PATH")),
    ),
    Command(
        "demo-pump",
        "program",
        PROGRAM,
        "a pump with Modbus on 127.0.0.1",
        options=(Option(("--port",), "port", "PORT"),),
    ),
)

BY_NAME = {command.name: command for command in (*COMMANDS, *HIDDEN)}
