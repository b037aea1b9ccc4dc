"""What a virtual machine boots: Debian roots by debootstrap, a kernel with the modules that count, an initial RAM disk
that loads a few of them, and disks made of folders. What is fetched is kept in CACHE, and what is made of it for as
long as this file is the same."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("TINYEDGE_QEMU_CACHE", ROOT / ".work" / "qemu"))
RECIPE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
DISK_BYTES = 3 << 30

_ALL = ("udev", "kmod", "iproute2", "procps")
PACKAGES = {
    "systemd": (*_ALL, "systemd", "systemd-sysv", "dbus"),
    "sysv": (*_ALL, "sysvinit-core", "sysv-rc", "insserv", "initscripts", "sysvinit-utils", "psmisc"),
}
OPENRC = ("openrc", "librc1", "libeinfo1")  # in place of sysv-rc, which debootstrap would insist on
# Loaded by the initial RAM disk, in this order with what they need; the rest are there for who asks for them.
EARLY = ("crc32c_generic", "virtio_pci", "virtio_blk", "ext4")  # ext4 asks for the first by its name
LATER = (
    *(
        "virtio_net",
        "virtio_console",
        "vfat",
        "nls_cp437",
        "nls_ascii",
        "nls_iso8859-1",
        "loop",
        "af_packet",
        "autofs4",
        "i6300esb",
    ),
    *(
        "overlay",
        "veth",
        "bridge",
        "br_netfilter",
        "nf_tables",
        "nft_compat",
        "nft_chain_nat",
        "ip_tables",
        "iptable_nat",
    ),
    *("xt_MASQUERADE", "xt_comment", "xt_addrtype", "xt_mark", "xt_conntrack", "xt_multiport", "xt_nat", "softdog"),
)

AGENT = """\
#!/bin/sh
# Runs what the other end of the wire asks for; each line is `ID BASE64`, each answer `ID CODE BASE64`.
modprobe virtio_console
until wire=$(echo /dev/vport*p*) && [ -c "$wire" ]; do sleep 0.2; done
exec 3<>"$wire"
while read -r id asked <&3; do
  printf %s "$asked" | base64 -d >/run/vm-asked
  sh /run/vm-asked >/run/vm-said 2>&1 3>&- </dev/null
  printf '%s %s %s\\n' "$id" "$?" "$(base64 -w0 </run/vm-said)" >&3
done
"""
AGENT_UNIT = """\
[Unit]
DefaultDependencies=no
After=systemd-udevd.service local-fs.target
[Service]
ExecStart=/usr/local/sbin/vm-agent
StandardError=journal+console
Restart=always
[Install]
WantedBy=sysinit.target
"""
INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in MODULES; do /bin/busybox insmod "/lib/$module" || echo "no $module"; done
until [ -b /dev/vda ]; do /bin/busybox sleep 0.05; done
/bin/busybox mount -t ext4 -o rw /dev/vda /root || exec /bin/busybox sh
/bin/busybox mount --move /dev /root/dev
/bin/busybox umount /proc
exec /bin/busybox switch_root /root /sbin/init
"""


UNWANTED = (  # of systemd's: a boot takes seconds less without
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("getty.target", "serial-getty@ttyS0.service", "systemd-pstore.service", "e2scrub_reap.service"),
    *("systemd-timesyncd.service", "systemd-update-utmp.service", "systemd-logind.service"),
)


def run(*argv: str | Path, cwd: Path | None = None) -> None:
    environ = {**os.environ, "DPKG_FORCE": "unsafe-io"}  # a root that is cut off while it is made is made anew
    words = [str(one) for one in argv]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


# --- the kernel ----------------------------------------------------------------------------------


def kernel() -> tuple[Path, Path]:
    """Paths of a Debian kernel and of a RAM disk that mounts /dev/vda and goes on there."""
    folder = CACHE / f"kernel-{RECIPE}"
    if not folder.exists():
        made = _anew("kernel")
        unpacked = _kernel_package(made)
        shutil.copy(next((unpacked / "boot").glob("vmlinuz-*")), made / "vmlinuz")
        _modules(unpacked, made / "modules")
        _ram_disk(made / "modules", made / "initrd")
        shutil.rmtree(unpacked)
        made.rename(folder)
    return folder / "vmlinuz", folder / "initrd"


def _anew(what: str) -> Path:
    """An empty folder aside, for what is then given its name; whatever an earlier recipe has made is gone."""
    for old in CACHE.glob(f"{what}-*"):
        shutil.rmtree(old)
    made = CACHE / f"{what}-new"
    made.mkdir(parents=True)
    return made


def _kernel_package(folder: Path) -> Path:
    name = _newest_kernel()
    if not name:  # a machine whose lists of packages were removed
        run("apt-get", "update")
        name = _newest_kernel()
    run("apt-get", "download", name, cwd=folder)
    package = next(folder.glob("linux-image-*.deb"))
    run("dpkg-deb", "-x", package, folder / "unpacked")
    package.unlink()
    return folder / "unpacked"


def _newest_kernel() -> str:
    """Name of its package; empty when apt knows of none."""
    said = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=False)
    return next((line.split()[1] for line in said.stdout.splitlines() if "Depends:" in line), "")


def _modules(unpacked: Path, target: Path) -> None:
    """The few that count, with what they need, of some four thousand."""
    version = next((unpacked / "lib" / "modules").iterdir()).name
    run("depmod", "-b", unpacked, version)
    source = unpacked / "lib" / "modules" / version
    needs = dict(line.split(":", 1) for line in (source / "modules.dep").read_text().splitlines())
    by_name = {Path(path).name.removesuffix(".ko"): path for path in needs}
    lib = target / "lib" / "modules" / version
    for name in (*EARLY, *LATER):
        for path in (by_name[name], *needs[by_name[name]].split()) if name in by_name else ():
            (lib / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, lib / path)
    for extra in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(source / extra, lib / extra)
    run("depmod", "-b", target, version)


def _ram_disk(modules: Path, target: Path) -> None:
    lib = next((modules / "lib" / "modules").iterdir())
    needs = dict(line.split(":", 1) for line in (lib / "modules.dep").read_text().splitlines())
    order: list[str] = []
    for name in EARLY:
        path = next((one for one in needs if Path(one).name == f"{name}.ko"), None)
        if path is not None:  # else it is built in
            order += [one for one in (*reversed(needs[path].split()), path) if one not in order]
    busybox = shutil.which("busybox") or "busybox"
    script = INIT.replace("MODULES", " ".join(Path(one).name for one in order)).encode()
    entries: list[tuple[str, int, bytes]] = [
        *((name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "lib", "dev", "proc", "root")),
        ("init", stat.S_IFREG | 0o755, script),
        ("bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes()),
        *((f"lib/{Path(one).name}", stat.S_IFREG | 0o644, (lib / one).read_bytes()) for one in order),
    ]
    target.write_bytes(b"".join(_cpio(entries)))


def _cpio(entries: Iterable[tuple[str, int, bytes]]) -> Iterable[bytes]:
    """Format newc: a header of thirteen hexadecimal numbers, the name and the data, each padded to four bytes."""
    for number, (name, mode, data) in enumerate((*entries, ("TRAILER!!!", 0, b"")), 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + "".join(f"{one:08X}" for one in fields).encode() + name.encode() + b"\0"
        yield head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


# --- a root --------------------------------------------------------------------------------------


def debian(init: str) -> Path:
    """Folder of a fresh Debian with this init system, the kernel's modules and the agent."""
    folder = CACHE / f"debian-{init}-{RECIPE}"
    if not folder.exists():
        modules = kernel()[0].parent / "modules" / "lib"
        base = debian("sysv") if init == "openrc" else None
        made = _anew(f"debian-{init}")
        _debootstrap(init, made, base)
        shutil.copytree(modules, made / "usr" / "lib", dirs_exist_ok=True)
        _settle(init, made)
        made.rename(folder)
    return folder


def _debootstrap(init: str, made: Path, base: Path | None) -> None:
    if base is not None:
        run("cp", "-a", f"{base}/.", made)
        run("apt-get", "download", *OPENRC, cwd=made)
        run("chroot", made, "dpkg", "--purge", "--force-depends", "sysv-rc")
        run("chroot", made, "sh", "-c", "dpkg -i /*.deb && rm /*.deb")
        return
    without = ["--exclude=systemd-sysv,systemd,init"] if init == "sysv" else []
    include = f"--include={','.join(PACKAGES[init])}"
    debs = CACHE / "debs"
    debs.mkdir(exist_ok=True)
    unshared = ("unshare", "--mount")  # what it mounts goes with it, however it ends
    run(*unshared, "debootstrap", "--variant=minbase", f"--cache-dir={debs}", include, *without, SUITE, made, MIRROR)
    for spare in ("var/cache/apt/archives", "usr/share/doc", "usr/share/locale", "usr/share/man", "var/lib/apt/lists"):
        shutil.rmtree(made / spare, ignore_errors=True)


def _settle(init: str, made: Path) -> None:
    (made / "etc" / "hostname").write_text("vm\n")
    (made / "etc" / "hosts").write_text("127.0.0.1 localhost\n127.0.1.1 vm\n")
    (made / "etc" / "fstab").write_text("/dev/vda / ext4 rw 0 0\n")
    agent = made / "usr" / "local" / "sbin" / "vm-agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    if init == "systemd":
        unit = made / "etc" / "systemd" / "system" / "vm-agent.service"
        unit.write_text(AGENT_UNIT)
        wants = unit.parent / "sysinit.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / unit.name).symlink_to(f"../{unit.name}")
        for name in UNWANTED:
            (unit.parent / name).unlink(missing_ok=True)
            (unit.parent / name).symlink_to("/dev/null")
    else:
        table = made / "etc" / "inittab"
        lines = [line for line in table.read_text().splitlines() if "getty" not in line]
        table.write_text("\n".join([*lines, "ag:2345:respawn:/usr/local/sbin/vm-agent", ""]))


# --- disks ---------------------------------------------------------------------------------------


def disk(folder: Path, path: Path, size: int = DISK_BYTES) -> Path:
    """An ext4 file system with what is in `folder`, owners and modes as they are."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    run("mke2fs", "-q", "-t", "ext4", "-O", "^metadata_csum_seed", "-E", "root_owner=0:0", "-d", folder, path)
    return path


def boot_partition(path: Path) -> Path:
    """A FAT file system, as boards boot from."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(32 << 20)
    run("mkfs.vfat", path)
    return path
