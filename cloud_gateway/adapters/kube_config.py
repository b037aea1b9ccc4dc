"""Where the API server is and who we are to it: from a kubeconfig, from the pod that we run in, or by hand.

Tokens in files are read again when the file has changed. A program that gets credentials (`exec` in a kubeconfig) is
run by its argv, with a time limit and a limit to what it may print.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.adapters.kube_credentials import ExecPlugin, Fixed, Identity, TokenFile
from cloud_gateway.certificates import load_chain
from tinyedge.errors import BadInput, WorldError

Json = dict[str, Any]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Endpoint(Struct):
    """API servers (tried in turn while one can't be connected to), how to know them, and who we are.

    `ca_pem` empty: the system's CAs. `server_name`: the name to check instead of the address. `compress`: ask for
    compressed answers, which costs both ends CPU and pays over long lines only. `namespace`: where we live, or the
    kubeconfig's default.
    """

    urls: tuple[str, ...]
    identity: Identity
    ca_pem: str = ""
    insecure: bool = False
    server_name: str = ""
    proxy: str = ""
    compress: bool = False
    namespace: str = "default"

    def tls(self) -> ssl.SSLContext:
        """For connections from now on; with the identity's certificate when it has one."""
        context = ssl.create_default_context(cadata=self.ca_pem or None)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        chain, key = self.identity.certificate()
        if chain:
            _load_chain(context, chain, key)
        return context


def _load_chain(context: ssl.SSLContext, chain: str, key: str) -> None:
    try:
        load_chain(context, chain.rstrip() + "\n" + key)
    except (ssl.SSLError, ValueError) as error:
        raise WorldError(
            "the client certificate for Kubernetes can't be used", str(error), "look at both files"
        ) from None


def from_url(url: str | Sequence[str], ca_pem: str = "", token: str = "", namespace: str = "default") -> Endpoint:
    """One address, or several of the same cluster."""
    urls = (url,) if isinstance(url, str) else tuple(url)
    return Endpoint(_checked(urls), Fixed(token=token), ca_pem=ca_pem, namespace=namespace)


def in_cluster(env: Mapping[str, str] | None = None, folder: Path = SERVICE_ACCOUNT) -> Endpoint:
    """By the service account of the pod that this runs in. WorldError outside of one."""
    env = os.environ if env is None else env
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        why = "KUBERNETES_SERVICE_HOST is not set"
        raise WorldError("this is not a pod of a cluster", why, "name the cluster: --kubeconfig FILE, or --sandbox DIR")
    shown = f"[{host}]" if ":" in host else host
    namespace = folder / "namespace"
    return Endpoint(
        _checked((f"https://{shown}:{port}",)),
        TokenFile(str(folder / "token")),
        ca_pem=read_text(folder / "ca.crt"),
        namespace=read_text(namespace).strip() if namespace.exists() else "default",
    )


def from_kubeconfig(path: str | Path, context: str = "", servers: Sequence[str] = ()) -> Endpoint:
    """From a kubeconfig, or several with ':' between them, of which the first that names something wins. `context`
    empty: its current one. `servers` replace the address. BadInput when it can't be used as it is."""
    config = _merged([_loaded(Path(one).expanduser()) for one in str(path).split(":") if one])
    name = context or str(config.get("current-context") or "")
    if not name:
        raise BadInput("current-context", "", "the name of a context, in the kubeconfig or by --context")
    chosen = _named(config, "contexts", "context", name)
    cluster = _named(config, "clusters", "cluster", str(chosen.get("cluster") or ""))
    user = _named(config, "users", "user", str(chosen["user"])) if chosen.get("user") else {}
    urls = tuple(servers) or (str(cluster.get("server") or ""),)
    ca_pem = _pem(cluster, "certificate-authority")
    return Endpoint(
        _checked(urls),
        _identity(user, urls[0], ca_pem),
        ca_pem=ca_pem,
        insecure=cluster.get("insecure-skip-tls-verify") is True,
        server_name=str(cluster.get("tls-server-name") or ""),
        proxy=_proxy(str(cluster.get("proxy-url") or "")),
        compress=cluster.get("disable-compression") is not True,
        namespace=str(chosen.get("namespace") or "default"),
    )


def _checked(urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        if not url.startswith(("https://", "http://")):
            raise BadInput("the address of the API server", url, "https://HOST:PORT")
    return tuple(url.rstrip("/") for url in urls)


def _proxy(url: str) -> str:
    if url and not url.startswith(("http://", "https://")):
        raise BadInput("proxy-url", url, "http://HOST:PORT or https://HOST:PORT; other kinds of proxy are not spoken")
    return url


# --- kubeconfig --------------------------------------------------------------------------------------


def _loaded(path: Path) -> Json:
    """One file; relative paths in it are made absolute, since they are relative to it."""
    import yaml  # noqa: PLC0415 - 2.7 MB, which a gateway in a cluster need not pay

    try:
        config = yaml.safe_load(read_text(path, limits.KUBE_CONFIG_BYTES_MAX))
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInput(str(path), "(not shown)", f"a kubeconfig in YAML: {_place(error)}") from None
    if not isinstance(config, dict):
        raise BadInput(str(path), type(config).__name__, "a kubeconfig")
    for kind, inner in (("clusters", "cluster"), ("users", "user")):
        for entry in _entries(config, kind):
            _make_absolute(entry.get(inner), path.parent)
    return config


def _place(error: Exception) -> str:
    """Where, without the text that stands there."""
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, {getattr(error, 'problem', '')}" if mark else type(error).__name__


def _make_absolute(inner: object, folder: Path) -> None:
    if not isinstance(inner, dict):
        return
    for key in ("certificate-authority", "client-certificate", "client-key", "tokenFile"):
        if inner.get(key):
            inner[key] = str(folder / str(inner[key]))
    command = (inner.get("exec") or {}).get("command") if isinstance(inner.get("exec"), dict) else None
    if command and "/" in str(command):
        inner["exec"]["command"] = str(folder / str(command))


def _entries(config: Json, kind: str) -> list[Json]:
    found = config.get(kind) or []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _merged(configs: list[Json]) -> Json:
    merged: Json = {}
    for config in configs:
        for key, value in config.items():
            if key in ("clusters", "users", "contexts"):
                merged[key] = [*merged.get(key, []), *_entries(config, key)]
            elif value and not merged.get(key):
                merged[key] = value
    return merged


def _named(config: Json, kind: str, inner: str, name: str) -> Json:
    entries = _entries(config, kind)
    for entry in entries:
        if entry.get("name") == name and isinstance(entry.get(inner), dict):
            return dict(entry[inner])
    known = ", ".join(str(entry.get("name")) for entry in entries[:10]) or "none"
    raise BadInput(f"the {inner} of the kubeconfig", name, f"one of those in it: {known}")


def _pem(section: Json, key: str) -> str:
    """Inline data wins over a file, as with kubectl."""
    data = section.get(f"{key}-data")
    if data:
        try:
            return base64.b64decode(str(data), validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            raise BadInput(f"{key}-data", "(not shown)", "PEM in base64") from None
    return read_text(Path(str(section[key]))) if section.get(key) else ""


def _identity(user: Json, url: str, ca_pem: str) -> Identity:
    if user.get("auth-provider"):
        raise BadInput("auth-provider", "(not shown)", "exec: Kubernetes has dropped auth-provider in 1.26")
    headers = _impersonation(user)
    if isinstance(user.get("exec"), dict):
        authority = base64.b64encode(ca_pem.encode()).decode()
        return ExecPlugin.of(user["exec"], headers, {"server": url, "certificate-authority-data": authority})
    chain, key = _pem(user, "client-certificate"), _pem(user, "client-key")
    if bool(chain) != bool(key):
        raise BadInput("client-certificate", "(not shown)", "a certificate together with its client-key")
    if user.get("tokenFile"):
        return TokenFile(str(user["tokenFile"]), headers, chain, key)
    token = str(user.get("token") or "")
    if user.get("username") and not token:
        words = f"{user['username']}:{user.get('password') or ''}".encode()
        headers = [*headers, ("Authorization", "Basic " + base64.b64encode(words).decode())]
    return Fixed(token, headers, chain, key)


def _impersonation(user: Json) -> list[tuple[str, str]]:
    groups = user.get("as-groups") or []
    named = [("Impersonate-User", str(user["as"]))] if user.get("as") else []
    return [*named, *(("Impersonate-Group", str(group)) for group in groups)]


def read_text(path: Path, bytes_max: int = limits.KUBE_FILE_BYTES_MAX) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
        text = data.decode()
    except OSError as error:
        why = error.strerror or str(error)
        raise WorldError(f"{path} can't be read", why, "name a file that is there and may be read") from None
    except UnicodeDecodeError:
        raise WorldError(f"{path} can't be read", "it is not text", "name the right file") from None
    if len(data) > bytes_max:
        raise WorldError(f"{path} is too large", f"at most {bytes_max} bytes are read", "name the right file")
    return text
