"""Which addresses may be dialled because an object of the cluster says so: pure, the same at the edge and the gateway.

Whoever may write a Device or a rule must not reach, through us, what only this machine can reach. So an address that
comes from such an object is looked up first, and what is dialled is checked, never the name alone:

    an ordinary address   is allowed by an entry that covers it: `*`, a network, an address, the name that was asked for
    a guarded address     loopback, link-local, a cloud's metadata service, the API server: only by an entry that means
                          just that, never by `*` or a network that merely contains it, nor by a name whose DNS
                          somebody else may hold (but `localhost`)

Entries are `*`, HOST, ADDRESS or NETWORK/BITS, each with `:PORT` behind it or for any port; an IPv6 address with a port
stands in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from msgspec import Struct

from tinyedge.errors import BadInput
from tinyedge.limits import OUTBOUND_ENTRIES_MAX

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

ANYTHING = "*"
EXPECTED = "HOST, ADDRESS or NETWORK/BITS, with or without :PORT, such as 10.0.0.0/8 or collector.example:443, or *"

_HOST = re.compile(r"^[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?$")
_GUARDED: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), what)
    for network, what in (
        ("127.0.0.0/8", "this machine itself"),
        ("::1/128", "this machine itself"),
        ("0.0.0.0/8", "this machine itself"),  # Linux connects 0.0.0.0 and :: to loopback
        ("::/128", "this machine itself"),
        ("169.254.0.0/16", "link-local, where clouds keep their metadata service"),
        ("fe80::/10", "link-local"),
        ("fd00:ec2::254/128", "a cloud's metadata service"),
        ("100.100.100.200/32", "a cloud's metadata service"),
    )
)


class Entry(Struct, frozen=True):
    """One of `host` and `network` is set, or neither for `*`. `port` 0: any."""

    host: str = ""
    network: Network | None = None
    port: int = 0


class Allowed(Struct, frozen=True):
    """What `outbound.allow` says. Nothing is allowed by an empty one."""

    entries: tuple[Entry, ...] = ()

    def refusal(self, host: str, address: str, port: int, api_servers: Collection[tuple[str, int]] = ()) -> str:
        """Why `address` (numeric, what `host` was looked up to) must not be dialled at `port`; empty when it may.

        `api_servers` are the addresses, numeric, at which a Kubernetes API server is known to listen.
        """
        try:
            plain = _plain(address)
        except ValueError:
            return f"{address!r} is no address"
        entries = [entry for entry in self.entries if entry.port in (0, port)]
        guarded = next(((network, what) for network, what in _GUARDED if plain in network), None)
        if any(_plain(known) == plain and at == port for known, at in api_servers):
            own = ip_network(plain)
            may = any(entry.network == own for entry in entries)
            why = "is the Kubernetes API server: only its own address in outbound.allow opens it"
        elif guarded:
            network, what = guarded
            may = _opens(entries, host, plain, network)
            why = f"is {what}: only an address or a network within {network} in outbound.allow opens it"
        else:
            may, why = _covered(entries, host, plain), "is covered by no entry of outbound.allow"
        return "" if may else f"{_shown(host, plain, port)} {why}"


def allowed(entries: Iterable[str], field: str = "outbound.allow") -> Allowed:
    """BadInput names the entry that is none."""
    texts = list(entries)
    if len(texts) > OUTBOUND_ENTRIES_MAX:
        raise BadInput(field, f"{len(texts)} entries", f"at most {OUTBOUND_ENTRIES_MAX}: give networks")
    return Allowed(tuple(_entry(text, f"{field}[{number}]") for number, text in enumerate(texts)))


def _entry(text: str, field: str) -> Entry:
    wrong = BadInput(field, text, EXPECTED)
    where, port = _split(text.strip().lower(), wrong)
    if where == ANYTHING:
        return Entry(port=port)
    try:
        return Entry(network=_network(where), port=port)
    except ValueError:
        # What looks like a number and is no address is a slip, not a name.
        if not _HOST.match(where) or "/" in where or re.fullmatch(r"[0-9.]+", where):
            raise wrong from None
    return Entry(host=where.rstrip("."), port=port)


def _split(text: str, wrong: BadInput) -> tuple[str, int]:
    """`[::1]:80`, `::1`, `fe80::/10`, `10.0.0.1:80`, `*:443`: what stands before the port, and the port."""
    where, number = text, ""
    if bracketed := re.fullmatch(r"\[([0-9a-f:.%/]+)\](/[0-9]+)?(?::([0-9]+))?", text):
        where, number = bracketed[1] + (bracketed[2] or ""), bracketed[3] or ""
    elif text.count(":") == 1:
        where, _, number = text.partition(":")
        if not number:
            raise wrong
    if number and not (number.isascii() and number.isdigit() and 0 < int(number) < 65536):
        raise wrong
    return where, int(number or 0)


def _network(text: str) -> Network:
    """An address is a network of its own. ValueError when it is neither."""
    network = ip_network(text)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return IPv4Network((mapped, max(0, network.prefixlen - 96))) if mapped else network


def _plain(address: str) -> Address:
    """Without a zone, and an IPv4 address that is spelled as an IPv6 one as what it is."""
    found = ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def _opens(entries: list[Entry], host: str, address: Address, guarded: Network) -> bool:
    """Whether an entry means this guarded address, and nothing beside what is `guarded`."""
    local = address.is_loopback and _name(host) == "localhost"
    return any(
        local and entry.host == "localhost"
        if entry.network is None
        else _covers_within(entry.network, address, guarded)
        for entry in entries
    )


def _covers_within(network: Network, address: Address, guarded: Network) -> bool:
    same = network.version == guarded.version and network.network_address in guarded
    return same and network.prefixlen >= guarded.prefixlen and address in network


def _covered(entries: list[Entry], host: str, address: Address) -> bool:
    return any(
        address in entry.network if entry.network is not None else entry.host in ("", _name(host)) for entry in entries
    )


def _name(host: str) -> str:
    return host.lower().rstrip(".")


def _shown(host: str, address: Address, port: int) -> str:
    where = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    return where if _name(host) in ("", str(address)) else f"{where} ({host})"
