"""The environment that a binary is made in: exactly what build/requirements-PRODUCT.txt names, by digest, and nothing
that happens to be installed beside it. Made once for each state of that file and each interpreter.

`python build/tools.py --lock` (`make lock`) writes these files anew, with the newest that pyproject.toml allows.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = 2  # environments of earlier states: one of them may be in use
# PyInstaller's start program is compiled, with a zlib of its own: the one that is handed out asks the system for one.
COMPILED = {"PYI_STATIC_ZLIB": "1"}


def python(product: str, work: Path = ROOT / ".work" / "build") -> Path:
    """The interpreter of that environment."""
    locked = ROOT / "build" / f"requirements-{product}.txt"
    words = f"{sys.version} {sys.base_prefix} {COMPILED}".encode() + locked.read_bytes()
    folder = work / f"{product}-{hashlib.sha256(words).hexdigest()[:12]}"
    found = folder / "bin" / "python"
    work.mkdir(parents=True, exist_ok=True)
    with (work / f"{product}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may ask for it at the same time
        if not (folder / "complete").exists():
            for old in sorted(work.glob(f"{product}-*"), key=os.path.getmtime)[:-KEPT]:
                shutil.rmtree(old)
            shutil.rmtree(folder, ignore_errors=True)  # begun once, and cut off
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            pip = [str(found), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
            how = ["--no-binary", "pyinstaller", "--no-cache-dir", "--require-hashes", "-r", str(locked)]
            environ = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
            subprocess.run([*pip, *how], check=True, env=environ | COMPILED)
            (folder / "complete").touch()
    return found


def site_packages(interpreter: Path) -> Path:
    return next(interpreter.parent.parent.glob("lib/python3*/site-packages"))


def lock() -> None:
    """For every kind of machine, so that it need not be the one that builds."""
    folder = ROOT / ".work" / "build" / "lock"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "pip"), "install", "-q", "uv"], check=True)
    for product, extras in (("edge", []), ("gateway", ["--extra", "gateway"])):
        sources = ["pyproject.toml", "build/requirements.in", *extras]
        form = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-emit-find-links"]
        target = f"build/requirements-{product}.txt"
        argv = [str(folder / "bin" / "uv"), "pip", "compile", "-q", "--upgrade", *sources, *form, "-o", target]
        subprocess.run([*argv, "--custom-compile-command", "make lock"], check=True, cwd=ROOT)


if __name__ == "__main__":
    if sys.argv[1:] != ["--lock"]:
        sys.exit(__doc__)
    lock()
