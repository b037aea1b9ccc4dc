"""What docs/release.md says of signatures, with the commands that it gives."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.rig import binary
from tests.upgrade.rig import ROOT, program
from tinyedge import __version__
from tinyedge.upgrade.bundle import this_architecture

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl (apt-get install openssl)")
VERIFY = re.search(r"```sh\n(.*?)```", (ROOT / "docs" / "release.md").read_text(), re.DOTALL)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder as it is handed out, with the published key."""
    out, key = tmp_path / "dist", tmp_path / "release.key"
    build(["bundle.py", "--new-key", str(key)])
    build(["bundle.py", str(program(tmp_path / "made", "0.1.0")), "--key", str(key), "--out", str(out)])
    (out / "tinyedge-0.1.0-amd64.cdx.json").write_text("{}\n")
    build(["sums.py", str(out), "--key", str(key)])
    (out / "release.pub").write_bytes(key.with_name("release.key.pub").read_bytes())
    return out


def build(words: list[str]) -> None:
    subprocess.run([sys.executable, str(ROOT / "build" / words[0]), *words[1:]], check=True, capture_output=True)


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    assert VERIFY is not None
    return subprocess.run(["sh", "-ec", VERIFY[1]], cwd=folder, capture_output=True, text=True, check=False)


def test_a_download_is_verified_by_openssl_as_the_documents_say(release: Path) -> None:
    done = verify(release)
    assert done.returncode == 0, done.stderr
    assert "Signature Verified Successfully" in done.stdout
    assert re.findall(r"(?m)^(.*): OK$", done.stdout) == ["tinyedge-0.1.0-amd64.cdx.json", "tinyedge-0.1.0-amd64.run"]


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder as `make binary` leaves it, with what an earlier try has signed in it."""
    dist = tmp_path / "built"
    for product in ("tinyedge", "tinyedge-gateway"):
        made = program(dist, __version__, product=product)
        made.with_name(f"{made.name}.cdx.json").write_text("{}\n")
    edge = dist / f"tinyedge-{__version__}-{this_architecture()}"
    binary._add_packaging("edge", edge)
    (edge / "_internal/packaging/trust").mkdir(exist_ok=True)
    (edge / "_internal/packaging/trust/tried.pub").write_text("a key of another day\n")
    (dist / "tinyedge-0.0.1-old.run").write_text("of another day\n")
    return dist


def make_release(dist: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "build" / "release.py"), "--dist", str(dist), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_a_release_is_all_of_it_in_one_go_and_nothing_else(built: Path, tmp_path: Path) -> None:
    key = tmp_path / "release.key"
    build(["bundle.py", "--new-key", str(key)])
    done = make_release(built, "--key", str(key))
    assert done.returncode == 0, done.stderr
    name, arch = f"{__version__}-{this_architecture()}", this_architecture()
    files = {f"tinyedge-{name}.{one}" for one in ("run", "cdx.json")} | {f"tinyedge_{__version__}_{arch}.deb"}
    files |= {f"tinyedge-{name}-rootfs.tar.gz", f"tinyedge-{name}-rootfs-openrc.tar.gz"}
    files |= {f"tinyedge-gateway-{name}.tar.gz", f"tinyedge-gateway-{name}.cdx.json"}
    out = built / "release"
    assert {one.name for one in out.iterdir()} == files | {"SHA256SUMS", "SHA256SUMS.sig"}
    assert "devices will trust one key alone" in done.stderr
    (out / "release.pub").write_bytes(key.with_name("release.key.pub").read_bytes())
    found = verify(out)
    assert found.returncode == 0, found.stderr
    assert set(re.findall(r"(?m)^(.*): OK$", found.stdout)) == files
    keys = built / f"tinyedge-{name}" / "_internal/packaging/trust"
    assert [one.read_bytes() for one in keys.glob("*.pub")] == [(out / "release.pub").read_bytes()]


def test_a_release_without_a_key_or_a_build_says_what_to_do(built: Path, tmp_path: Path) -> None:
    assert "make release KEY=KEYFILE" in make_release(built).stderr
    key = tmp_path / "release.key"
    build(["bundle.py", "--new-key", str(key)])
    done = make_release(tmp_path, "--key", str(key))
    assert done.returncode == 1
    assert "make binary" in done.stderr


def test_sums_of_another_key_and_a_changed_file_are_refused(release: Path) -> None:
    sums, run = (release / "SHA256SUMS"), release / "tinyedge-0.1.0-amd64.run"
    good = run.read_bytes()
    run.write_bytes(good + b"\n")
    changed = verify(release)
    assert changed.returncode != 0
    assert "tinyedge-0.1.0-amd64.run: FAILED" in changed.stdout
    run.write_bytes(good)
    sums.write_bytes(sums.read_bytes() + b"\n")
    assert "Signature Verification Failure" in (told := verify(release)).stdout + told.stderr
    assert told.returncode != 0
