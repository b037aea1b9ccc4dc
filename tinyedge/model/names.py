"""The shapes of names that Kubernetes allows: each function says whether a text is one."""

from __future__ import annotations

import re

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}", re.ASCII)
_PORT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)
_ENV = re.compile(r"[ -<>-~]+")  # printable ASCII without =
_UID = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_]{0,62}", re.ASCII)
_HEADER = re.compile(r"[-A-Za-z0-9]+", re.ASCII)
_SYSCTL = re.compile(r"[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)*", re.ASCII)
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(\.{_OCTET}){{3}}", re.ASCII)
_HEXTET = re.compile(r"[0-9A-Fa-f]{1,4}", re.ASCII)
_HEXTETS = 8

SUBDOMAIN_MAX = 253

LABEL_WORDS = "lower-case letters, digits and '-', at most 63, beginning and ending with a letter or digit"
SUBDOMAIN_WORDS = "lower-case letters, digits, '-' and '.', at most 253, as in a DNS name"
KEY_WORDS = "a key of letters, digits, '-', '_' and '.', at most 253"


def is_label(text: str) -> bool:
    """Of DNS (RFC 1123)."""
    return _LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    return len(text) <= SUBDOMAIN_MAX and all(_LABEL.fullmatch(part) or _long_label(part) for part in text.split("."))


def is_qualified(text: str) -> bool:
    """Key of a label or annotation: a name, perhaps behind a DNS name and a slash."""
    prefix, slash, name = text.rpartition("/")
    return _QUALIFIED.fullmatch(name) is not None and (not slash or is_subdomain(prefix.lower()))


def is_label_value(text: str) -> bool:
    return not text or _QUALIFIED.fullmatch(text) is not None


def is_key(text: str) -> bool:
    """Of a ConfigMap or Secret: also the name of a file, so not `.` and nothing that begins with `..`."""
    return _KEY.fullmatch(text) is not None and text != "." and not text.startswith("..")


def is_port_name(text: str) -> bool:
    return len(text) <= 15 and _PORT.fullmatch(text) is not None and not text.isdigit()


def is_env_name(text: str) -> bool:
    return _ENV.fullmatch(text) is not None


def is_uid(text: str) -> bool:
    """Stands in paths: no slash, no dot."""
    return _UID.fullmatch(text) is not None


def is_header(text: str) -> bool:
    return _HEADER.fullmatch(text) is not None


def is_sysctl(text: str) -> bool:
    return len(text) <= SUBDOMAIN_MAX and _SYSCTL.fullmatch(text) is not None


def is_ip(text: str) -> bool:
    """IPv4 or IPv6, without a zone."""
    if _IPV4.fullmatch(text):
        return True
    head, gap, tail = text.partition("::")
    parts = [part for side in (head, tail) if side for part in side.split(":")]
    count = len(parts)
    if count and text.endswith(parts[-1]) and _IPV4.fullmatch(parts[-1]):
        parts.pop()
        count += 1
    fits = count < _HEXTETS if gap else count == _HEXTETS
    return ":" in text and fits and all(_HEXTET.fullmatch(part) for part in parts)


def is_path_below(text: str) -> bool:
    """Relative, and it never leaves where it starts."""
    return bool(text) and not text.startswith("/") and ".." not in text.split("/") and "\0" not in text


def is_absolute_path(text: str) -> bool:
    return text.startswith("/") and ".." not in text.split("/") and "\0" not in text


def _long_label(part: str) -> bool:
    """A part of a DNS name in Kubernetes may be longer than DNS allows, as long as the whole is not."""
    return len(part) > 63 and re.fullmatch(r"[a-z0-9][-a-z0-9]*[a-z0-9]", part, re.ASCII) is not None
