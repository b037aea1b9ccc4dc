"""The configuration: one frozen value, read once, checked once, passed by hand. The daemon never writes it.

One TOML file, every key also as `section.key=value` on the command line. An unknown key is an error for whoever asks
whether the file is right; the daemon passes it over and tells of it, for after a way back to an older version the file
may be a newer one's. A wrong value is always an error. The words under each key are what docs/configuration.md shows.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from tinyedge.errors import BadInput, TinyEdgeError
from tinyedge.limits import MIB, SERIES_BYTES_MAX
from tinyedge.mqtt_settings import settings
from tinyedge.outbound import allowed

DEFAULT_PATH = "/etc/tinyedge/tinyedge.toml"
FILE_BYTES_MAX = 256 * 1024
TRIAL_S_MAX = 1100  # the launcher ends a start that has decided nothing after 1200 s

# What the patterns below ask for, in words.
WORDS = {
    r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$": "lower-case letters, digits, '-' and '.', such as gate-7",
    r"^/": "an absolute path",
    r"^(/.*)?$": "an absolute path, or empty",
    r"^(\S+:[0-9]{1,5})?$": "HOST:PORT, such as 127.0.0.1:9060, or empty",
    r"^(/\S*)?$": "an absolute path, or nothing",
    r"^(wss://\S+)?$": "wss://HOST:PORT",
    r"^(http://\S+)?$": "http://HOST:PORT or http://USER:PASSWORD@HOST:PORT",
}

Name = Annotated[str, Meta(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", max_length=253)]
AbsolutePath = Annotated[str, Meta(pattern=r"^/")]
OptionalPath = Annotated[str, Meta(pattern=r"^(/.*)?$")]
Percent = Annotated[int, Meta(ge=0, le=100)]
Seconds = Annotated[int, Meta(ge=1, le=86400)]


class NodeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[Name, Meta(description="Name of this node. Empty: the host name in lower case.")] = ""
    pods_dir: Annotated[
        AbsolutePath, Meta(description="Where volumes of pods are made. Must be visible to the container runtime.")
    ] = "/var/lib/tinyedge/pods"
    logs_dir: Annotated[AbsolutePath, Meta(description="Where containers' log files are kept.")] = "/var/log/pods"
    cluster_dns: Annotated[
        tuple[str, ...],
        Meta(description="DNS servers for pods with dnsPolicy ClusterFirst. Empty: they use the host's (Default)."),
    ] = ()


class StoreConfig(Struct, frozen=True, forbid_unknown_fields=True):
    path: Annotated[AbsolutePath, Meta(description="Folder of the crash-safe store.")] = "/var/lib/tinyedge/store"


class SeriesConfig(Struct, frozen=True, forbid_unknown_fields=True):
    bytes_max: Annotated[
        int,
        Meta(
            ge=8 * MIB,
            le=65536 * MIB,
            description="Room on the disk for queued readings, events and messages, in bytes; the oldest go first.",
        ),
    ] = SERIES_BYTES_MAX
    age_days: Annotated[int, Meta(ge=1, le=3650, description="Age at which they are dropped, in days.")] = 30
    window_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="How long a report of a device may wait for others to share its flush, in milliseconds: it is "
            "answered that much later, and the disk is written far less. 0: not at all.",
        ),
    ] = 0


CONTAINERD, PROCESSES = "/run/containerd/containerd.sock", "/var/lib/tinyedge/processes"


class RuntimeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    kind: Annotated[
        Literal["containerd", "process"],
        Meta(
            description="`containerd` runs containers by CRI. `process` runs pods as plain host processes, without "
            "isolation, for demos and for boards too small for containerd."
        ),
    ] = "containerd"
    endpoint: Annotated[
        AbsolutePath,
        Meta(
            description="Socket of containerd, or the state folder of the process runtime (where nothing is said: "
            "`/var/lib/tinyedge/processes`)."
        ),
    ] = CONTAINERD
    parallel: Annotated[
        int, Meta(ge=1, le=64, description="Operations on the runtime at the same time, over all pods.")
    ] = 8
    relist_s: Annotated[
        Seconds, Meta(description="How often the runtime is listed when it has no container events, in seconds.")
    ] = 5
    cgroup_driver: Annotated[
        Literal["cgroupfs", "systemd"], Meta(description="As containerd is configured (SystemdCgroup).")
    ] = "cgroupfs"


class ManifestsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    paths: Annotated[
        tuple[AbsolutePath, ...],
        Meta(
            description="Folders of YAML or JSON manifests (pods, ConfigMaps, Secrets, devices and their models, "
            "rules), watched for changes."
        ),
    ] = ("/etc/tinyedge/manifests",)


class ImagesConfig(Struct, frozen=True, forbid_unknown_fields=True):
    import_path: Annotated[
        str, Meta(description="Watched folder of image archives, imported as they appear. Empty: none.")
    ] = ""
    gc_high_percent: Annotated[Percent, Meta(description="Disk use at which unused images are removed.")] = 85
    gc_low_percent: Annotated[Percent, Meta(description="Disk use down to which they are removed.")] = 80
    pull_parallel: Annotated[int, Meta(ge=1, le=16, description="Image pulls at the same time.")] = 2


class PressureConfig(Struct, frozen=True, forbid_unknown_fields=True):
    memory_available_mb: Annotated[
        int, Meta(ge=0, description="Below this much available memory, in MiB, pods are evicted. 0: never.")
    ] = 50
    disk_free_percent: Annotated[
        Percent, Meta(description="Below this share of free disk for pods and logs, pods are evicted. 0: never.")
    ] = 10
    image_disk_free_percent: Annotated[
        Percent, Meta(description="The same for the disk of the images, if it is another one. 0: never.")
    ] = 10
    inodes_free_percent: Annotated[Percent, Meta(description="The same for inodes. 0: never.")] = 5
    transition_s: Annotated[
        Seconds, Meta(description="How long pressure must be gone before its condition clears, in seconds.")
    ] = 60
    sample_s: Annotated[Seconds, Meta(description="How often the machine is looked at, in seconds.")] = 10


class LogsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    container_max_mb: Annotated[
        int, Meta(ge=1, le=1024, description="Size at which a container's log file is rotated, in MiB.")
    ] = 10
    container_files: Annotated[
        int, Meta(ge=2, le=100, description="Log files kept for each container, the live one included.")
    ] = 5


class ApiConfig(Struct, frozen=True, forbid_unknown_fields=True):
    socket: Annotated[AbsolutePath, Meta(description="Unix socket of the local API.")] = "/run/tinyedge/api.sock"
    group: Annotated[
        str,
        Meta(description="Group that may use the socket; whoever may, is as powerful as root. Empty: root's own."),
    ] = ""


class CloudConfig(Struct, frozen=True, forbid_unknown_fields=True):
    url: Annotated[
        str,
        Meta(
            pattern=r"^(wss://\S+)?$",
            max_length=2000,
            description="Address of the gateway, such as `wss://gateway.example:8443`. Empty: the one that was joined.",
        ),
    ] = ""
    proxy: Annotated[
        str,
        Meta(
            pattern=r"^(http://\S+)?$",
            max_length=2000,
            description="HTTP proxy on the way to the gateway, as `http://HOST:PORT` or "
            "`http://USER:PASSWORD@HOST:PORT`. Empty: none.",
        ),
    ] = ""
    heartbeat_s: Annotated[
        int,
        Meta(
            ge=2,
            le=3600,
            description="How often a link on which nothing happens is tried, in seconds; after two of them without a "
            "word it is dead.",
        ),
    ] = 30
    stream_kb_s: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Most that logs, exec and port-forward send, in KiB per second. 0: any."),
    ] = 0
    telemetry_kb_s: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Most that queued readings and events send, in KiB per second. 0: any."),
    ] = 0
    bulk_kb_s: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Most that the file of an upgrade takes, in KiB per second; it waits for everything else "
            "anyway. 0: any.",
        ),
    ] = 0
    join_files: Annotated[
        tuple[AbsolutePath, ...],
        Meta(
            description="Where a first-boot file may lie, which joins an unattended node. Read while it has no "
            "identity; the token in it is wiped once it has joined."
        ),
    ] = (
        "/boot/firmware/tinyedge-join.toml",
        "/boot/efi/tinyedge-join.toml",
        "/boot/tinyedge-join.toml",
        "/etc/tinyedge/tinyedge-join.toml",
    )


class MqttConfig(Struct, frozen=True, forbid_unknown_fields=True):
    url: Annotated[
        str,
        Meta(
            max_length=2000,
            description="MQTT broker of this node, as `mqtt://HOST[:PORT]`, or `mqtts://` with TLS; a user and a "
            "password may stand before the host. Empty: none.",
        ),
    ] = ""
    version: Annotated[Literal["3.1.1", "5"], Meta(description="Version of MQTT that is spoken.")] = "3.1.1"
    user: Annotated[str, Meta(description="User at the broker. Empty: the one in `mqtt.url`, if any.")] = ""
    password_file: Annotated[
        OptionalPath, Meta(description="File with the password on its first line, read at each connect.")
    ] = ""
    ca_file: Annotated[
        OptionalPath, Meta(description="CA of the broker's certificate (PEM). Empty: the CAs of this machine.")
    ] = ""
    cert_file: Annotated[OptionalPath, Meta(description="Our certificate for the broker (PEM). Empty: none.")] = ""
    key_file: Annotated[OptionalPath, Meta(description="Its key, unless that stands in the same file.")] = ""
    device_files: Annotated[
        OptionalPath,
        Meta(
            description="Folder of the passwords and certificates that a Device may name for a broker of its own. "
            "Empty: it may name none."
        ),
    ] = "/etc/tinyedge/devices"
    twin_events: Annotated[
        bool,
        Meta(description="Whether each reported value that differs is published, as KubeEdge's `…/update/document`."),
    ] = True


class ServicebusConfig(Struct, frozen=True, forbid_unknown_fields=True):
    listen: Annotated[
        str,
        Meta(
            pattern=r"^(\S+:[0-9]{1,5})?$",
            description="Where programs on this node post messages for KubeEdge's rules from servicebus to rest, as "
            "HOST:PORT; KubeEdge's is `127.0.0.1:9060`. Empty: nowhere.",
        ),
    ] = ""


class OutboundConfig(Struct, frozen=True, forbid_unknown_fields=True):
    allow: Annotated[
        tuple[str, ...],
        Meta(
            description="Where pushes, rules, calls of mappers and our own drivers may go because an object of the "
            "cluster says so: `HOST`, `ADDRESS` or `NETWORK/BITS`, each with or without `:PORT`, or `*` for all. "
            "Empty: nowhere. Addresses of this machine, link-local ones and metadata services only by an entry that "
            "means just them. `mqtt.url` is always reached."
        ),
    ] = ("*",)


class DmiConfig(Struct, frozen=True, forbid_unknown_fields=True):
    socket: Annotated[
        str,
        Meta(
            pattern=r"^(/\S*)?$",
            description="Unix socket on which device mappers register and report. Empty: no mappers, drivers only.",
        ),
    ] = "/run/tinyedge/dmi.sock"
    kubeedge_socket: Annotated[
        str,
        Meta(
            pattern=r"^(/\S*)?$",
            description="A second one, for mappers that expect KubeEdge's `/etc/kubeedge/dmi.sock`. Empty: none.",
        ),
    ] = ""
    group: Annotated[
        str, Meta(description="Group whose members may connect; whoever may, reports for devices. Empty: root's own.")
    ] = ""
    mapper_dirs: Annotated[
        tuple[AbsolutePath, ...],
        Meta(description="Folders in which mappers may have their own sockets; the daemon connects to no other."),
    ] = ("/run/tinyedge", "/var/lib/tinyedge/mappers", "/etc/kubeedge")


class UpgradeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    hold_s: Annotated[
        Seconds, Meta(description="A new version stays once it has been well for so long, without a break.")
    ] = 60
    window_s: Annotated[
        Seconds,
        Meta(
            description="A new version that is not well after so long goes, and the one before runs again. With "
            "`upgrade.hold_s` at most 1100."
        ),
    ] = 600


class WatchdogConfig(Struct, frozen=True, forbid_unknown_fields=True):
    device: Annotated[
        OptionalPath,
        Meta(
            description="The machine's own watchdog, such as `/dev/watchdog`: it resets the machine when the daemon no "
            "longer decides anything, or does not come back. Empty: it is left alone."
        ),
    ] = ""
    timeout_s: Annotated[int, Meta(ge=5, le=3600, description="After how long it does; the device may round this.")] = (
        60
    )


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True):
    format: Annotated[Literal["human", "json"], Meta(description="Form of the daemon's own log on stderr.")] = "human"
    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least level that is shown.")] = (
        "info"
    )


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    node: NodeConfig = NodeConfig()
    store: StoreConfig = StoreConfig()
    series: SeriesConfig = SeriesConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    manifests: ManifestsConfig = ManifestsConfig()
    images: ImagesConfig = ImagesConfig()
    pressure: PressureConfig = PressureConfig()
    logs: LogsConfig = LogsConfig()
    api: ApiConfig = ApiConfig()
    cloud: CloudConfig = CloudConfig()
    mqtt: MqttConfig = MqttConfig()
    servicebus: ServicebusConfig = ServicebusConfig()
    outbound: OutboundConfig = OutboundConfig()
    dmi: DmiConfig = DmiConfig()
    upgrade: UpgradeConfig = UpgradeConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    log: LogConfig = LogConfig()


SECTIONS: dict[str, type[Struct]] = {name: type(getattr(Config(), name)) for name in Config.__struct_fields__}


def load(path: str | None, overrides: Sequence[str] = (), unknown: list[str] | None = None) -> Config:
    """Read `path` (None: the default file if it is there, else defaults) and apply `section.key=value` overrides.

    With a list for `unknown`, keys that there are not go there, in words, and are passed over. Raises BadInput naming
    the key and what would be right, or TinyEdgeError when the file can't be read.
    """
    return build(_read(path or DEFAULT_PATH, required=path is not None), overrides, unknown)


def build(raw: Mapping[str, object], overrides: Sequence[str] = (), unknown: list[str] | None = None) -> Config:
    """What stands in a file, with overrides; as `load`. Raises BadInput naming the key and what would be right."""
    raw = with_values(raw, overrides)
    if unknown is None:
        refuse_unknown(raw)
    else:
        _pass_over_unknown(raw, unknown)
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise _explain(raw, str(error)) from None
    if config.images.gc_low_percent > config.images.gc_high_percent:
        raise BadInput("images.gc_low_percent", config.images.gc_low_percent, "at most images.gc_high_percent")
    _require_decided_in_time(config.upgrade)
    allowed(config.outbound.allow)
    if config.mqtt.url:
        settings(config.mqtt.url)
    if (config.runtime.kind, config.runtime.endpoint) == ("process", CONTAINERD):
        return replace(config, runtime=replace(config.runtime, endpoint=PROCESSES))
    return config


def _require_decided_in_time(upgrade: UpgradeConfig) -> None:
    if upgrade.hold_s + upgrade.window_s > TRIAL_S_MAX:
        why = f"at most {TRIAL_S_MAX} together with upgrade.hold_s ({upgrade.hold_s}): then a start on trial is ended"
        raise BadInput("upgrade.window_s", upgrade.window_s, why)


def with_values(raw: Mapping[str, object], overrides: Sequence[str]) -> dict[str, object]:
    """A copy of what stands in a file, with `section.key=value` set. BadInput for what is no section."""
    found = {name: dict(table) if isinstance(table, dict) else table for name, table in raw.items()}
    for override in overrides:
        _override(found, override)
    return found


def shown(config: Config) -> dict[str, dict[str, object]]:
    """All sections as plain values for people, without the passwords that a proxy and a broker may want."""
    found: dict[str, dict[str, object]] = msgspec.to_builtins(config)
    found["cloud"]["proxy"] = re.sub(r"//[^/]*@", "//…@", config.cloud.proxy)
    found["mqtt"]["url"] = re.sub(r"//[^/]*@", "//…@", config.mqtt.url)
    return found


def proxy_password(config: Config) -> str:
    """As it is written there; empty for none."""
    user, at, _ = config.cloud.proxy.removeprefix("http://").rpartition("@")
    return user.partition(":")[2] if at else ""


def mqtt_password(config: Config) -> str:
    """As it is written in the broker's address; empty for none."""
    user, at, _ = config.mqtt.url.partition("://")[2].rpartition("@")
    return user.partition(":")[2] if at else ""


def parse(text: bytes, path: str) -> dict[str, object]:
    """What stands in a file's text; TinyEdgeError when it is no TOML."""
    if len(text) > FILE_BYTES_MAX:
        raise TinyEdgeError(f"can't read {path}", f"it is larger than {FILE_BYTES_MAX} bytes", "is it the right file?")
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TinyEdgeError(f"{path} is not valid TOML", str(error), "correct that line") from error


def _read(path: str, *, required: bool) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        if not required:
            return {}
        raise TinyEdgeError(
            f"can't read {path}", "it is not there", "name another file with --config, or leave --config out"
        ) from error
    except OSError as error:
        raise TinyEdgeError(f"can't read {path}", os.strerror(error.errno or 0), "check its permissions") from error
    return parse(text, path)


def _override(raw: dict[str, object], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot and name):
        raise BadInput("--set", override, "section.key=value, such as node.name=gate-7")
    table = raw.setdefault(section, {})
    if not isinstance(table, dict):
        raise BadInput(section, table, "a section (a TOML table)")
    table[name] = _scalar(text, _declared(section, name))


def _declared(section: str, name: str) -> object:
    """The default of a key, which tells how its text is read on the command line."""
    known = SECTIONS.get(section)
    return getattr(known(), name, "") if known else ""


def _scalar(text: str, default: object) -> object:
    if isinstance(default, tuple):
        return [part for part in text.split(",") if part]
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text, text)
    if isinstance(default, int):
        return int(text) if text.lstrip("-").isdigit() else text
    return text


def refuse_unknown(raw: Mapping[str, object]) -> None:
    """BadInput for the first key that there is not."""
    for section, table in raw.items():
        if section not in SECTIONS:
            raise BadInput("section", section, "one of " + _nearest(section, list(SECTIONS)))
        if not isinstance(table, dict):
            raise BadInput(section, table, "a section (a TOML table)")
        known = SECTIONS[section].__struct_fields__
        for name, value in table.items():
            if name not in known:
                raise BadInput(f"{section}.{name}", value, "one of the keys " + _nearest(name, list(known)))


def _pass_over_unknown(raw: dict[str, object], unknown: list[str]) -> None:
    """Takes them out of `raw`; one that is left there is refused by its type."""
    for section in [one for one in raw if one not in SECTIONS]:
        del raw[section]
        unknown.append(f"section {section} (the nearest is {_nearest(section, list(SECTIONS)).partition(',')[0]})")
    for section, table in raw.items():
        if not isinstance(table, dict):
            raise BadInput(section, table, "a section (a TOML table)")
        known = list(SECTIONS[section].__struct_fields__)
        for name in [one for one in table if one not in known]:
            del table[name]
            unknown.append(f"{section}.{name} (the nearest is {section}.{_nearest(name, known).partition(',')[0]})")


def _nearest(word: str, known: list[str]) -> str:
    """The known words, the one that is most like `word` first."""
    pairs = set(pairwise(word))
    return ", ".join(sorted(known, key=lambda other: -len(pairs & set(pairwise(other)))))


def _explain(raw: dict[str, object], message: str) -> BadInput:
    """msgspec says `Expected X, got Y - at `$.section.key``: name the key, show its value, say what would be right."""
    what, _, where = message.partition(" - at `$.")
    path = where.rstrip("`")
    section, _, name = path.partition("[")[0].partition(".")
    table = raw.get(section)
    value = table.get(name) if isinstance(table, dict) else table
    expected = what.removeprefix("Expected ")
    for pattern, words in WORDS.items():
        if repr(pattern) in what:
            expected = words
    if what.startswith("Invalid enum value"):
        expected = " or ".join(map(repr, _choices(section, name)))
    return BadInput(path, "(not shown)" if path in ("cloud.proxy", "mqtt.url") else value, expected)


def _choices(section: str, name: str) -> tuple[object, ...]:
    return get_args(get_type_hints(SECTIONS[section])[name])


def described() -> list[tuple[str, object, str]]:
    """Every key as (section.key, default, description), in order; for the documentation and `tinyedge config`."""
    rows = []
    for section, struct in SECTIONS.items():
        hints = get_type_hints(struct, include_extras=True)
        defaults = struct()
        for name in struct.__struct_fields__:
            words = [meta.description for meta in getattr(hints[name], "__metadata__", ()) if meta.description]
            rows.append((f"{section}.{name}", getattr(defaults, name), words[-1] if words else ""))
    return rows
