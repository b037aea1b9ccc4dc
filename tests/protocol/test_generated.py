"""The generated protobuf code: up to date, and imported without what it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip()


def test_the_generated_code_is_what_its_sources_give() -> None:
    done = subprocess.run([sys.executable, "build/protobuf.py", "--check"], check=False, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()


def test_protobufs_pure_python_classes_are_left_out_and_still_there_for_others() -> None:
    code = """
import sys
from tinyedge.protocol import cri_pb2
name = "google.protobuf.internal.python_message"
message = cri_pb2.ImageSpec.FromString(cri_pb2.ImageSpec(image="x").SerializeToString())
print(name in sys.modules, message.image, hasattr(__import__(name, fromlist=["x"]), "GeneratedProtocolMessageType"))
"""
    assert _python(code) == "False x True"
