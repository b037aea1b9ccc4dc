"""The identity's files: whatever is cut off wherever, what is read is one identity or another, never half of each."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cloud_gateway.adapters import ca
from cloud_gateway.core.authority import DAY_S
from tests.fakes.disk import MemoryDisk, PowerCut
from tinyedge.adapters.dial import client_context
from tinyedge.errors import BadInput, StoreError
from tinyedge.protocol.joining import JoinAnswer
from tinyedge.store.node_identity import NEXT_PEM, PEM, PENDING, TOML, Identity, IdentityFiles

NOW = 1_790_000_000
FOLDER = "/var/lib/tinyedge"
CA = ca.Ca.load(*ca.make_ca(NOW))
OTHER_CA = ca.Ca.load(*ca.make_ca(NOW))


def signed(
    name: str = "gate-7", line: str = "01" * 8, now_s: int = NOW, by: ca.Ca = CA, cas: str = ""
) -> tuple[JoinAnswer, str]:
    """An answer of a gateway, and the key that it is for."""
    key = ec.generate_private_key(ec.SECP256R1())
    chain = by.sign_node(key.public_key(), name, line, now_s, 90 * DAY_S)
    private = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()).decode()
    return JoinAnswer(name, chain, cas or by.trusted), pem


FIRST, SECOND = signed(), signed("gate-8", "02" * 8, by=OTHER_CA)
RENEWED = signed(now_s=NOW + 60 * DAY_S, cas=CA.trusted + OTHER_CA.trusted)


def save(files: IdentityFiles, made: tuple[JoinAnswer, str], gateway: str = "wss://one:8443") -> Identity:
    return files.save(gateway=gateway, machine="aa", answer=made[0], key=made[1], joined_s=NOW)


def fresh() -> tuple[MemoryDisk, IdentityFiles]:
    disk = MemoryDisk()
    disk.mkdir(FOLDER)
    return disk, IdentityFiles(FOLDER, disk)


def held(disk: MemoryDisk, identity: Identity | None) -> tuple[str, str, str, bytes] | None:
    """What a node would be: gateway, name, CAs, and the very bytes of its key and chain."""
    if identity is None:
        return None
    return identity.gateway, identity.node, identity.cas, disk.content(identity.pem)


def test_nothing_is_no_identity() -> None:
    assert fresh()[1].load() is None


def test_what_was_saved_is_read_again() -> None:
    _, files = fresh()
    saved = save(files, FIRST)
    assert files.load() == saved
    assert (saved.node, saved.gateway, saved.machine, saved.line) == ("gate-7", "wss://one:8443", "aa", "01" * 8)
    assert (saved.not_before_s, saved.not_after_s) == (NOW - DAY_S, NOW + 90 * DAY_S)
    assert saved.pem == f"{FOLDER}/{PEM}"
    assert saved.cas == CA.trusted


def test_a_renewal_replaces_key_and_chain_and_the_cas() -> None:
    _, files = fresh()
    renewed = files.renew(save(files, FIRST), *RENEWED)
    assert files.load() == renewed
    assert renewed.cas == CA.trusted + OTHER_CA.trusted
    assert renewed.not_after_s == NOW + 150 * DAY_S


def test_on_a_real_disk_the_files_are_for_their_owner_alone_and_tls_can_load_them(tmp_path: Path) -> None:
    files = IdentityFiles(str(tmp_path))
    files.keep_pending_key(FIRST[1])
    assert stat.S_IMODE((tmp_path / PENDING).stat().st_mode) == 0o600
    saved = save(files, FIRST)
    assert sorted(os.listdir(tmp_path)) == [PEM, TOML]
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600 for name in (PEM, TOML))
    assert client_context(saved.cas, identity_pem=saved.pem)
    assert "gate-7" in (tmp_path / TOML).read_text()


def test_what_a_gateway_sends_can_not_write_anything_else_into_the_files(tmp_path: Path) -> None:
    files = IdentityFiles(str(tmp_path))
    answer, key = signed(cas='"""\nnode = "other"\n' + CA.trusted + 'x = """')
    assert save(files, (answer, key), 'wss://h/"\nnode = "x').node == "gate-7"
    found = files.load()
    assert found is not None
    assert found.cas == CA.trusted
    assert found.gateway == 'wss://h/"\nnode = "x'


@pytest.mark.parametrize(
    "answer",
    [
        JoinAnswer("gate-8", FIRST[0].chain, CA.trusted),
        JoinAnswer("gate-7", "", CA.trusted),
        JoinAnswer("gate-7", CA.trusted, CA.trusted),
        JoinAnswer("gate-7", FIRST[0].chain, ""),
        JoinAnswer("gate-7", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", CA.trusted),
    ],
    ids=["another name", "no chain", "the CA's own", "no CAs", "no certificate"],
)
def test_an_answer_that_is_not_whole_changes_nothing(answer: JoinAnswer) -> None:
    disk, files = fresh()
    saved = save(files, FIRST)
    before = held(disk, saved)
    with pytest.raises(BadInput):
        save(files, (answer, FIRST[1]))
    with pytest.raises(BadInput):
        files.renew(saved, answer, FIRST[1])
    assert held(disk, files.load()) == before


def test_a_renewal_can_not_make_it_another_node_or_line() -> None:
    _, files = fresh()
    saved = save(files, FIRST)
    for other in (signed("gate-8"), signed(line="09" * 8)):
        with pytest.raises(BadInput):
            files.renew(saved, *other)


def test_files_that_do_not_belong_together_are_no_identity() -> None:
    disk, files = fresh()
    save(files, FIRST)
    other_disk, other = fresh()
    save(other, SECOND)
    handle = disk.open(f"{FOLDER}/{PEM}")
    disk.ftruncate(handle, 0)
    disk.pwrite(handle, other_disk.content(f"{FOLDER}/{PEM}"), 0)
    with pytest.raises(StoreError, match="join again"):
        files.load()
    assert save(files, FIRST).node == "gate-7", "a join mends it"


@pytest.mark.parametrize("text", [b"", b"x", b"\xff", b"node = 1\n", b'node = "a"\n'])
def test_a_damaged_toml_is_told(text: bytes) -> None:
    disk, files = fresh()
    save(files, FIRST)
    handle = disk.open(f"{FOLDER}/{TOML}")
    disk.ftruncate(handle, 0)
    disk.pwrite(handle, text, 0)
    with pytest.raises(StoreError, match="join again"):
        files.load()


def test_a_disk_that_fails_is_told_and_keeps_the_identity() -> None:
    disk, files = fresh()
    saved = save(files, FIRST)
    before = held(disk, saved)
    disk.read_only = True
    with pytest.raises(StoreError):
        save(files, SECOND)
    with pytest.raises(StoreError):
        files.renew(saved, *RENEWED)
    with pytest.raises(StoreError):
        files.forget()
    assert held(disk, files.load()) == before


def test_reading_changes_nothing() -> None:
    disk, files = fresh()
    save(files, FIRST)
    disk.cut_at(0)
    assert files.load() is not None


def test_a_pending_key_is_kept_until_the_join_is_done() -> None:
    _, files = fresh()
    assert files.pending_key() == ""
    files.keep_pending_key(FIRST[1])
    assert files.pending_key() == FIRST[1]
    save(files, FIRST)
    assert files.pending_key() == ""


def test_a_damaged_pending_key_is_none() -> None:
    disk, files = fresh()
    files.keep_pending_key(FIRST[1])
    disk.cut_file(f"{FOLDER}/{PENDING}", 40)
    assert files.pending_key() == ""


# --- the power fails at every write, and again on the way back ---------------------------------------


def _join(files: IdentityFiles, disk: MemoryDisk) -> None:
    files.keep_pending_key(SECOND[1])
    save(files, SECOND, "wss://two:8443")


def _renew(files: IdentityFiles, disk: MemoryDisk) -> None:
    identity = files.load()
    assert identity is not None
    files.renew(identity, *RENEWED)


def _leave(files: IdentityFiles, disk: MemoryDisk) -> None:
    files.forget()


def _outcomes(change: Callable[[IdentityFiles, MemoryDisk], None]) -> list[object]:
    """What a node may be after the change was cut off: as before or as after; a renewal may have brought only CAs."""
    disk, files = fresh()
    save(files, FIRST)
    before = held(disk, files.load())
    assert before is not None
    change(files, disk)
    after = held(disk, files.load())
    only_cas = [(*before[:2], RENEWED[0].cas, before[3])] if change is _renew else []
    return [before, after, *only_cas]


@pytest.mark.parametrize("change", [_join, _renew, _leave])
def test_a_power_cut_at_any_write_leaves_one_identity_or_the_other(
    change: Callable[[IdentityFiles, MemoryDisk], None],
) -> None:
    allowed = _outcomes(change)
    seen = set()
    for cut in range(30):
        for seed in range(8):
            disk, files = fresh()
            save(files, FIRST)
            disk.cut_at(cut)
            rng = Random(f"{cut}/{seed}")
            try:
                change(files, disk)
                is_whole = True
            except PowerCut:
                is_whole = False
                disk.power_cut(rng)
            found = held(disk, files.load())
            assert found in allowed, f"cut at {cut}, seed {seed}"
            assert not is_whole or found == allowed[1]
            seen.add(allowed.index(found))
    assert {0, 1} <= seen, "the cut was always at the same side"


@pytest.mark.parametrize("then", [_join, _renew, _leave])
def test_a_second_power_cut_during_the_next_change_leaves_one_too(
    then: Callable[[IdentityFiles, MemoryDisk], None],
) -> None:
    renewed_second = signed("gate-8", "02" * 8, now_s=NOW + 60 * DAY_S, by=OTHER_CA)
    ways = 0
    for first_cut in range(4, 20):
        for second_cut in range(20):
            disk, files = fresh()
            save(files, FIRST)
            rng = Random(f"{first_cut}/{second_cut}")
            for cut, change in ((first_cut, _join), (second_cut, then)):
                before = files.load()
                disk.cut_at(cut)
                try:
                    if change is _renew and before is not None and before.node == "gate-8":
                        files.renew(before, *renewed_second)
                    else:
                        change(files, disk)
                except PowerCut:
                    disk.power_cut(rng)
                disk.heal()
            found = files.load()  # StoreError would say: a mixture
            if found is None:
                assert then is _leave
                continue
            ways += 1
            key = disk.content(found.pem)
            fits = {"gate-7": (FIRST[1], RENEWED[1]), "gate-8": (SECOND[1], renewed_second[1])}[found.node]
            assert any(key.startswith(one.encode()) for one in fits)
            assert found.gateway == {"gate-7": "wss://one:8443", "gate-8": "wss://two:8443"}[found.node]
    assert ways > (20 if then is _leave else 50)


def test_the_test_of_power_cuts_sees_a_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(files: IdentityFiles, disk: MemoryDisk) -> None:
        write = files._write
        files._write = lambda name, data: write(PEM if name == NEXT_PEM else name, data)  # type: ignore[method-assign]
        _join(files, disk)

    with pytest.raises((StoreError, AssertionError)):
        test_a_power_cut_at_any_write_leaves_one_identity_or_the_other(careless)
