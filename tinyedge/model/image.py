"""Names of images and the credentials for the registries they come from."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Struct

from tinyedge.errors import BadInput
from tinyedge.model.runtime import ImageSeen

_HUB = "docker.io"
_HUB_SERVERS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class RegistryAuth(Struct, frozen=True):
    """Credentials for one registry host; never shown."""

    server: str
    username: str = ""
    password: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"RegistryAuth({self.server!r})"


class _Login(Struct, frozen=True):
    username: str = ""
    password: str = ""
    auth: str = ""
    identitytoken: str = ""


class _DockerConfig(Struct, frozen=True):
    auths: dict[str, _Login] = {}


_CONFIG = msgspec.json.Decoder(_DockerConfig)
_LOGINS = msgspec.json.Decoder(dict[str, _Login])


def normal_reference(image: str) -> str:
    """The full form of an image name: `busybox` is `docker.io/library/busybox:latest`. An id stays as it is."""
    if image.startswith("sha256:"):
        return image
    host, slash, path = image.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, path = _HUB, image
    host = _HUB if host in _HUB_SERVERS else host
    if host == _HUB and "/" not in path:
        path = f"library/{path}"
    if "@" in path:
        name, _, digest = path.partition("@")
        return f"{host}/{_without_tag(name)}@{digest}"
    return f"{host}/{path}" if ":" in path.rpartition("/")[2] else f"{host}/{path}:latest"


def _without_tag(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.partition(':')[0]}"


def registry_of(image: str) -> str:
    return normal_reference(image).partition("/")[0]


def find_image(images: Iterable[ImageSeen], reference: str) -> str:
    """The id of the image that `reference` names; empty when it is not there."""
    wanted = normal_reference(reference)
    for image in images:
        names = (*image.tags, *image.digests)
        if image.id in (wanted, reference) or any(normal_reference(name) == wanted for name in names):
            return image.id
    return ""


def auths_for(image: str, secrets: Iterable[tuple[str, bytes]]) -> list[RegistryAuth]:
    """What the pull secrets (type, content) hold for the registry of `image`, most specific path first.

    A key of a docker configuration may be a host, a URL, or a host with the beginning of a path.
    """
    wanted = normal_reference(image)
    found = [auth for kind, data in secrets for auth in _decode(kind, data) if _covers(auth.server, wanted)]
    return sorted(found, key=lambda auth: -len(_bare(auth.server)))


def _decode(kind: str, data: bytes) -> Iterator[RegistryAuth]:
    try:
        logins = _LOGINS.decode(data) if kind == "kubernetes.io/dockercfg" else _CONFIG.decode(data).auths
        for server, login in logins.items():
            username, password = login.username, login.password
            if login.auth and not username:
                username, _, password = base64.b64decode(login.auth, validate=True).decode().partition(":")
            yield RegistryAuth(server, username, password, login.identitytoken)
    except (msgspec.MsgspecError, binascii.Error, UnicodeDecodeError):
        raise BadInput("imagePullSecrets", kind, "a docker configuration in JSON") from None


def _bare(server: str) -> str:
    path = server.removeprefix("https://").removeprefix("http://").rstrip("/")
    path = path.removesuffix("/v1").removesuffix("/v2")
    host, slash, rest = path.partition("/")
    return f"{_HUB if host in _HUB_SERVERS else host}{slash}{rest}"


def _covers(server: str, reference: str) -> bool:
    bare = _bare(server)
    return reference.startswith((f"{bare}/", f"{bare}:", f"{bare}@"))
