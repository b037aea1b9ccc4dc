"""Image archives for tests, made of a static busybox: docker and OCI layouts, plain, gzip or zstd."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import shutil
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PAUSE = "tinyedge.test/pause:1"
BUSYBOX = "tinyedge.test/busybox:1"
APPLETS = "sh echo cat sleep dd tail head ls id mkdir touch printf true false env httpd nc wget stat mount tr wc kill"


class Image(NamedTuple):
    """`layer` is a tar; `config` is the `config` part of the image configuration (Entrypoint, Cmd, User, ...)."""

    name: str
    layer: bytes
    config: dict[str, Any]

    @property
    def config_json(self) -> bytes:
        diff_ids = [f"sha256:{hashlib.sha256(self.layer).hexdigest()}"]
        return _json(
            {
                "architecture": _architecture(),
                "os": "linux",
                "config": self.config,
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }
        )


def pause_image() -> Image:
    return Image(PAUSE, _busybox_layer({}), {"Entrypoint": ["/bin/sleep", "2147483647"]})


def busybox_image(
    name: str = BUSYBOX, *, files: Mapping[str, bytes] | None = None, user: str = "", cmd: Sequence[str] = ("sh",)
) -> Image:
    config: dict[str, Any] = {"Cmd": list(cmd), "Env": ["PATH=/bin"]}
    if user:
        config["User"] = user
    return Image(name, _busybox_layer(files or {}), config)


def docker_archive(path: Path, images: Sequence[Image]) -> None:
    """What `docker save` writes."""
    manifest, files = [], {}
    for image in images:
        config_name = f"{hashlib.sha256(image.config_json).hexdigest()}.json"
        layer_name = f"{hashlib.sha256(image.layer).hexdigest()}/layer.tar"
        files[config_name], files[layer_name] = image.config_json, image.layer
        manifest.append({"Config": config_name, "RepoTags": [image.name], "Layers": [layer_name]})
    path.write_bytes(_tar({"manifest.json": _json(manifest), **files}))


def oci_archive(path: Path, image: Image) -> None:
    """An OCI image layout in a tar, with the full name as containerd's own annotation."""
    blobs: dict[str, bytes] = {}
    manifest = oci_manifest(image, blobs)
    descriptor = _descriptor(manifest, "application/vnd.oci.image.manifest.v1+json", blobs)
    descriptor["annotations"] = {"io.containerd.image.name": image.name}
    index = _json({"schemaVersion": 2, "manifests": [descriptor]})
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": index}
    path.write_bytes(_tar({**files, **{f"blobs/sha256/{digest}": data for digest, data in blobs.items()}}))


def oci_manifest(image: Image, blobs: dict[str, bytes]) -> bytes:
    """The image's manifest; its configuration and layer are put into `blobs` by their hex digest."""
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor(image.config_json, "application/vnd.oci.image.config.v1+json", blobs),
            "layers": [_descriptor(image.layer, "application/vnd.oci.image.layer.v1.tar", blobs)],
        }
    )


def gzipped(path: Path) -> Path:
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes(), compresslevel=1))
    return target


def zstandard(path: Path) -> Path:
    """A valid zstd frame of raw blocks: the format's framing without its compression."""
    target, data = path.with_name(path.name + ".zst"), path.read_bytes()
    size = 128 * 1024
    frame = struct.pack("<IBB", 0xFD2FB528, 0, 0x38)  # a window of 128 KiB, no content size, no checksum
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    for number, chunk in enumerate(chunks):
        last = number == len(chunks) - 1
        frame += struct.pack("<I", len(chunk) << 3 | last)[:3] + chunk
    target.write_bytes(frame)
    return target


def _descriptor(data: bytes, media_type: str, blobs: dict[str, bytes]) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _busybox_layer(files: Mapping[str, bytes]) -> bytes:
    program = shutil.which("busybox")
    assert program, "needs busybox-static"
    accounts = {"etc/passwd": b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"}
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for folder in ("bin", "etc", "tmp", "proc", "sys", "dev", "run"):
            _add(tar, folder, tarfile.DIRTYPE, mode=0o1777 if folder == "tmp" else 0o755)
        _add(tar, "bin/busybox", tarfile.REGTYPE, Path(program).read_bytes(), mode=0o755)
        for applet in APPLETS.split():
            _add(tar, f"bin/{applet}", tarfile.SYMTYPE, link="busybox")
        for name, data in {**accounts, **files}.items():
            _add(tar, name, tarfile.REGTYPE, data)
    return layer.getvalue()


def _tar(files: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            _add(tar, name, tarfile.REGTYPE, data)
    return archive.getvalue()


def _add(tar: tarfile.TarFile, name: str, kind: bytes, data: bytes = b"", *, mode: int = 0o644, link: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(data), link
    tar.addfile(entry, io.BytesIO(data))


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _architecture() -> str:
    machines = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
    return machines.get(platform.machine(), platform.machine())
