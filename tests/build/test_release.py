"""What docs/release.md says of signatures, with the commands that it gives."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.upgrade.rig import ROOT, program

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
