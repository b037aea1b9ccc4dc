"""What the process runtime can't do is refused here by name; the rest is put into the words of its supervisor."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tinyedge.errors import PeerError
from tinyedge.model.runtime import ContainerSpec

HOST_IMAGE = "host"

# capabilities(7), by number: to be taken from the bounding set of a container that root runs
# fmt: off
_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)
# fmt: on


def check_image(image: str) -> None:
    if image != HOST_IMAGE and not image.startswith(f"{HOST_IMAGE}/"):
        raise PeerError(
            "ErrImageNeverPull",
            f"the process runtime has no images, and {image} would be one",
            "use image: host, which runs the command from the host's file system",
            retryable=False,
        )


def check(spec: ContainerSpec) -> None:
    """Refuse what would be run otherwise than asked for, where that matters."""
    check_image(spec.image)
    security = spec.security
    user = os.geteuid() if security.run_as_user is None else security.run_as_user
    if not spec.command and not spec.args:
        raise PeerError("CreateContainerError", "no command is given, and image: host has none", retryable=False)
    if os.geteuid() and (user != os.geteuid() or security.run_as_group not in (None, os.getegid())):
        raise PeerError(
            "CreateContainerConfigError",
            f"runAsUser {user}: this daemon runs as user {os.geteuid()} and can't change it",
            retryable=False,
        )
    if security.run_as_non_root and user == 0:
        raise PeerError(
            "CreateContainerConfigError", "container has runAsNonRoot and would run as root", retryable=False
        )
    if any("\0" in text for pair in spec.env for text in pair) or any(
        "\0" in text for text in spec.command + spec.args
    ):
        raise PeerError("CreateContainerConfigError", "a command or variable holds a NUL character", retryable=False)


def launch_fields(mark: str, hostname: str, folder: str, spec: ContainerSpec, log: str) -> list[str]:
    """What the supervisor reads: `key=value` each. `mark` (`<sandbox>/<container>`) is how it finds what belongs to the
    container, `folder` the container's own, `log` the path of its log file."""
    security = spec.security
    env = {
        "HOSTNAME": hostname,
        **dict(spec.env),
        "TINYEDGE_CONTAINER": mark,
    }
    fields = [f"arg={argument}" for argument in spec.command + spec.args]
    fields += [f"env={name}={value}" for name, value in env.items()]
    fields += [
        f"mount={'ro' if mount.read_only else 'rw'}:{mount.container_path}:{mount.host_path}" for mount in spec.mounts
    ]
    fields += [
        f"cwd={spec.working_dir}",
        f"log={log}",
        f"root={folder}/root",
        f"links={folder}/links",
        f"oom={spec.resources.oom_score_adj}",
        f"groups={','.join(map(str, security.supplemental_groups))}",
    ]
    if security.run_as_user is not None:
        fields.append(f"uid={security.run_as_user}")
    if security.run_as_group is not None:
        fields.append(f"gid={security.run_as_group}")
    if security.no_new_privileges:
        fields.append("no_new_privileges=1")
    if security.drop_capabilities and not os.geteuid():
        fields.append(f"drop_capabilities={','.join(map(str, _dropped(security.drop_capabilities)))}")
    if spec.stdin:
        fields.append(f"stdin={'once' if spec.stdin_once else '1'}")
    if spec.tty:
        fields.append("tty=1")
    return fields


def _dropped(names: Sequence[str]) -> list[int]:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    if "ALL" in names:
        return list(range(last + 1))
    return [_CAPABILITIES.index(name) for name in names if name in _CAPABILITIES[: last + 1]]


def without_cgroups(spec: ContainerSpec) -> list[str]:
    shares = spec.resources.cpu_shares or 1024
    nice = next((nice for nice, least in enumerate((512, 256, 128, 64)) if shares >= least), 5)
    return [f"rlimit_memory={spec.resources.memory_limit_bytes}", f"nice={nice}"]
