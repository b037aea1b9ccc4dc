"""Build the binaries with PyInstaller: one folder for each program, holding all that it needs but the C library.

    python build/binary.py [--product edge|gateway] [--out dist] [--arch amd64|arm64|armhf]

The folder is `OUT/tinyedge-VERSION-ARCH/` (or `tinyedge-gateway-…`), made for the machine that this runs on, of the
libraries that build/requirements-PRODUCT.txt names (build/tools.py). Beside it: `….cdx.json`, what it is made of
(build/contents.py). What is left out on purpose stands in EXCLUDED, with the reason; tests/build/modules.txt lists the
modules that the daemon loads. Two builds of one commit by one interpreter are equal byte for byte: times, hash seeds
and paths are fixed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build"))

import contents  # noqa: E402
import tools  # noqa: E402

EPOCH = "1704067200"  # what SOURCE_DATE_EPOCH is when nobody sets it: the first second of 2024
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf", "armv8l": "armhf"}

ENTRIES = {"edge": ("tinyedge", "tinyedge"), "gateway": ("tinyedge-gateway", "cloud_gateway")}  # program, package

TEST_TOOLS = ("hypothesis", "pytest", "_pytest", "pluggy", "mypy", "PyInstaller", "coverage", "IPython")
EXCLUDED: dict[str, tuple[str, ...]] = {
    "tools of development that libraries look for": (*TEST_TOOLS, "setuptools", "pkg_resources", "distutils", "pip"),
    "12 MB of memory by PyInstaller's own hooks for them": ("multiprocessing", "concurrent.futures.process"),
    "never used by a daemon or its command line": (
        *("tkinter", "readline", "curses", "pdb", "pydoc", "doctest", "unittest", "lib2to3", "ensurepip", "idlelib"),
        *("xmlrpc", "xml", "pyexpat", "_elementtree", "sqlite3", "dbm", "smtplib", "ftplib", "turtle", "wsgiref"),
        *("statistics", "_statistics", "_uuid", "pymodbus", "trio.testing", "trio._tests"),
    ),
    "loaded by shutil for archives that nobody makes": ("bz2", "_bz2", "lzma", "_lzma"),
    "other ways to the same C library": ("cffi", "lmdb.cffi"),
    "text encodings of legacy files": (
        *("_codecs_cn", "_codecs_hk", "_codecs_iso2022", "_codecs_jp", "_codecs_kr", "_codecs_tw", "_multibytecodec"),
    ),
}
# Imported by compiled code, where no analysis sees it.
HIDDEN = {"edge": ("lmdb._envid", "msgspec._utils"), "gateway": ("lmdb._envid", "msgspec._utils", "_cffi_backend")}
DATA: dict[str, tuple[tuple[str, str], ...]] = {  # files that are read beside the code
    "edge": (),
    "gateway": (
        ("packaging/kubernetes/crds", "cloud_gateway/crds"),
        ("cloud_gateway/sandbox/types.txt", "cloud_gateway/sandbox"),
        ("cloud_gateway/sandbox/protobuf.txt", "cloud_gateway/sandbox"),
    ),
}
EDGE_EXCLUDED = (
    "cloud_gateway",
    "cryptography",
    "_cffi_backend",
    "httpx",
    "httpcore",
    "anyio",
    "certifi",
    "kubernetes",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make binary", description=__doc__.partition("\n")[0])
    parser.add_argument("--product", choices=sorted(ENTRIES), default="edge")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument(
        "--arch", choices=sorted(set(ARCHITECTURES.values())), help="another one is built by build/arm.py"
    )
    args = parser.parse_args()
    if args.arch not in (None, architecture()):
        import arm  # noqa: PLC0415

        sys.stdout.write(f"{arm.build(args.arch, args.out)}\n")
        return
    sys.stdout.write(f"{build(args.product, args.out)}\n")


def version() -> str:
    sys.path.insert(0, str(ROOT))
    import tinyedge  # noqa: PLC0415

    return tinyedge.__version__


def architecture() -> str:
    """Of the interpreter, which on a 64-bit kernel may be one of 32 bits."""
    machine = platform.machine()
    if machine == "aarch64" and sys.maxsize < 2**32:
        machine = "armv7l"
    if machine not in ARCHITECTURES:
        sys.exit(f"there is no build for {machine}: known are {', '.join(sorted(set(ARCHITECTURES.values())))}")
    return ARCHITECTURES[machine]


def build(product: str, out: Path) -> Path:
    """The folder of the program, made anew."""
    program, package = ENTRIES[product]
    target = out / f"{program}-{version()}-{architecture()}"
    with tempfile.TemporaryDirectory(prefix="tinyedge-build-") as scratch:
        python = tools.python(product)
        made = _pyinstaller(product, program, package, Path(scratch), python)
        _trim(made)
        parts = contents.parts(Path(scratch) / "work" / program, made, tools.site_packages(python))
        (made / "_internal" / "LICENSES").write_text(contents.licences(parts, (ROOT / "LICENSE").read_text()))
        _add_packaging(product, made)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, target)
    _settle_times(target)
    document = contents.sbom(parts, program, version(), architecture(), moment())
    target.with_name(f"{target.name}.cdx.json").write_text(document)
    return target


def _pyinstaller(product: str, program: str, package: str, scratch: Path, python: Path) -> Path:
    entry = scratch / "entry.py"
    entry.write_text(f"from {package}.__main__ import main\n\nmain()\n")
    excluded = [name for names in EXCLUDED.values() for name in names]
    excluded += EDGE_EXCLUDED if product == "edge" else ()
    data = [f"{ROOT / source}:{target}" for source, target in DATA[product]]
    argv = [
        *(str(python), "-m", "PyInstaller", "--noconfirm", "--onedir", "--strip", "--optimize", "2"),
        *("--name", program, "--log-level", "WARN", "--paths", str(ROOT)),
        *("--workpath", str(scratch / "work"), "--distpath", str(scratch / "out"), "--specpath", str(scratch)),
        *("--collect-submodules", package, *(f"--exclude-module={name}" for name in excluded)),
        *(f"--hidden-import={name}" for name in HIDDEN[product]),
        *(f"--add-data={one}" for one in data),
        str(entry),
    ]
    environ = {**os.environ, "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": str(moment())}
    environ["PYINSTALLER_CONFIG_DIR"] = str(scratch / "cache")
    environ["PYTHONPATH"] = str(ROOT)  # our own package is not installed there, and all its modules are to be found
    subprocess.run(argv, check=True, cwd=scratch, env=environ)
    return scratch / "out" / program


def _trim(folder: Path) -> None:
    """What PyInstaller brings along for libraries that ask for their own metadata, which none of ours does."""
    for found in folder.glob("_internal/*.dist-info"):
        shutil.rmtree(found)


def _add_packaging(product: str, folder: Path) -> None:
    """What install.sh takes from a version: the launcher, units for each init system, keys, a first configuration."""
    if product != "edge":
        return
    target = folder / "_internal" / "packaging"
    names = ("launcher", "install.sh", "tinyedge", "container-stack.sh", "tinyedge.toml")
    for name in (*names, "systemd", "openrc", "sysv", "trust"):
        source = ROOT / "packaging" / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def _settle_times(folder: Path) -> None:
    """Archives of two builds differ in nothing, the times of their files included."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (moment(), moment()), follow_symlinks=False)


def moment() -> int:
    """When everything in a build says that it was made, in seconds since 1970."""
    return int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))


if __name__ == "__main__":
    main()
