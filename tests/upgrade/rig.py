"""Small versions of a program that does nothing but say which one it is, and a device to install them on."""

from __future__ import annotations

import base64
import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tinyedge import libcrypto
from tinyedge.upgrade.bundle import open_bundle, this_architecture
from tinyedge.upgrade.versions import Versions

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "packaging" / "launcher"
KEY = bytes(range(32))
STRANGER = bytes(32)


def _builder() -> ModuleType:
    """build/ is no package: its name would shadow others."""
    spec = importlib.util.spec_from_file_location("tinyedge_build_bundle", ROOT / "build" / "bundle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


builder = _builder()


def program(
    folder: Path,
    version: str,
    *,
    architecture: str = "",
    product: str = "tinyedge",
    body: str = "",
    data_bytes: int = 25000,
    more: Mapping[str, bytes] = {},
) -> Path:
    """A program's folder, as build/binary.py leaves it."""
    made = folder / f"{product}-{version}-{architecture or this_architecture()}"
    (made / "_internal" / "lib").mkdir(parents=True)
    start = made / "tinyedge"
    start.write_text(body or f'#!/bin/sh\necho "{version} $* trial=${{TINYEDGE_TRIAL:-}}"\n')
    start.chmod(0o755)
    (made / "_internal" / "lib" / "data.bin").write_bytes(version.encode() * (data_bytes // 5))
    for path, content in more.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_bytes(content)
    return made


def bundle(folder: Path, version: str, key: bytes = KEY, *, script: bytes = b"#!/bin/sh\n", **more: Any) -> Path:
    made: Path = builder.bundle(program(folder, version, **more), key, folder / "out", script)
    return made


def bundled(program: Path, folder: Path) -> Path:
    """The file that installs itself, of a copy of a program's folder."""
    copy = folder / program.name
    shutil.copytree(program, copy)
    made: Path = builder.bundle(copy, KEY, folder / "out")
    return made


class Device:
    """A device's folders, with the key that it trusts."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "lib"
        self.state = folder / "state" / "upgrade"
        self.starts = folder / "state" / "starts"
        (self.root / "versions").mkdir(parents=True)
        (self.root / "trust").mkdir()
        self.state.parent.mkdir(parents=True)
        public = base64.b64encode(libcrypto.public_key(KEY))
        (self.root / "trust" / "release.pub").write_bytes(public + b"\n")
        self.versions = Versions(str(self.root), str(self.state))

    def stage(self, file: Path) -> str:
        """The name of the version in that file, which is there from now on."""
        found = open_bundle(str(file), self.keys)
        try:
            return self.versions.stage(found)
        finally:
            found.close()

    @property
    def environ(self) -> dict[str, str]:
        """For the launcher. It does not wait for a start that hangs, unless a test is about that."""
        paths = {"TINYEDGE_ROOT": str(self.root), "TINYEDGE_UPGRADE_STATE": str(self.state)}
        return {**paths, "TINYEDGE_TRIAL_S": "0", "TINYEDGE_STARTS": str(self.starts)}

    @property
    def keys(self) -> list[bytes]:
        return [libcrypto.public_key(KEY)]
