"""The sandbox's certificates: its CA, what it serves with, and what it shows to kubelets.

    ca.crt, ca.key               signs all of the others; clients trust it by the kubeconfig
    server.crt, server.key       localhost, 127.0.0.1, ::1 and the hosts that are given
    kubelet-client.crt, .key     CN kube-apiserver-kubelet-client, O system:masters: shown to kubelet endpoints
    kubeconfig                   for kubectl: with the admin's token

All 0600, made once, used again, and made anew when a third of their life is left.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct


class Certs(Struct, frozen=True):
    """`ca_pem` is also what kubelet endpoints must trust for clients: the key client-ca-file of the ConfigMap
    kube-system/extension-apiserver-authentication."""

    folder: Path
    ca_pem: str

    def server_context(self) -> ssl.SSLContext:
        """For the API's own port."""
        raise NotImplementedError

    def kubelet_context(self) -> ssl.SSLContext:
        """For connections to kubelet endpoints. Whose certificate those show is not checked, as kube-apiserver does
        without --kubelet-certificate-authority."""
        raise NotImplementedError


def open_certs(folder: Path, hosts: Sequence[str], now_s: float) -> Certs:
    """Load what is there, make what is missing, near its end, or lacks one of `hosts`. Raises WorldError."""
    raise NotImplementedError


def kubeconfig(url: str, ca_pem: str, token: str) -> str:
    """The text (YAML) of a kubeconfig with one cluster, one user and one context, all named `tinyedge-sandbox`."""
    raise NotImplementedError


def write_private(path: Path, data: bytes) -> None:
    """Write a file of secrets, 0600, whole or not at all."""
    raise NotImplementedError
