"""A bundle of a program that does nothing, with the packaging that a real one has."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.upgrade.rig import KEY, ROOT, builder, program


def _load(name: str) -> ModuleType:
    """build/ is no package: its name would shadow others."""
    spec = importlib.util.spec_from_file_location(f"tinyedge_build_{name}", ROOT / "build" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SHELLS = [("sh",), ("busybox", "sh")]
binary, overlay, deb = _load("binary"), _load("overlay"), _load("deb")


def run_file(folder: Path, version: str, **more: Any) -> Path:
    """The path of a file that installs itself."""
    folder.mkdir(parents=True, exist_ok=True)
    made = program(folder, version, **more)
    binary._add_packaging("edge", made)
    found: Path = builder.bundle(made, KEY, folder / "out")
    return found


def image(folder: Path, init: str) -> Path:
    """A root file system with just what tells its init system, its processor and its users."""
    for name in ("bin", "sbin", "etc/init.d", "run", *(f"etc/rc{level}.d" for level in range(7))):
        (folder / name).mkdir(parents=True)
    shutil.copy(sys.executable, folder / "bin" / "sh")
    (folder / "etc" / "group").write_text("root:x:0:\nstaff:x:990:\n")
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nsomebody:x:989:0::/:/bin/sh\n")
    if init == "systemd":
        (folder / "sbin" / "init").symlink_to("/lib/systemd/systemd")
    elif init == "openrc":
        (folder / "sbin" / "openrc-run").write_text("")
        (folder / "sbin" / "openrc-run").chmod(0o755)
    return folder


def sh(*argv: str | Path, shell: tuple[str, ...] = ("sh",), **more: object) -> subprocess.CompletedProcess[str]:
    words = [*shell, *map(str, argv)]
    return subprocess.run(words, capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload,no-any-return]


def tree(folder: Path) -> dict[str, tuple[str, str]]:
    """What is there: name to (mode, content or link)."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = oct(path.lstat().st_mode)
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (mode, content)
    return found
