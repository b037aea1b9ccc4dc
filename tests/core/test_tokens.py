"""Tokens of service accounts: asked for, waited for, renewed in time, kept when they have run out, and never shown."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from tests.core.rig import Rig, cloud_pod, deleted, pod
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.model.runtime import FilesPlan

HOUR_MS = 3_600_000


def volume(*audiences: str, expiration_s: int = 3600) -> Any:
    sources = [
        {"serviceAccountToken": {"path": f"t{n}", "audience": one, "expirationSeconds": expiration_s}}
        for n, one in enumerate(audiences or ("",))
    ]
    return [{"name": "access", "projected": {"sources": sources}}]


def waiting(*audiences: str, link: bool = True) -> Rig:
    """A node with a pod that wants a token, or several."""
    rig = Rig()
    rig.boot()
    rig.join()
    rig.link()
    rig.put(cloud_pod("web", volumes=volume(*audiences), serviceAccountName="robot"))
    rig.settle()
    if not link:
        rig.unlink()
    return rig


def asked(rig: Rig) -> list[ev.RequestToken]:
    found = [one for one in rig.sent if isinstance(one, ev.RequestToken)]
    rig.sent = [one for one in rig.sent if one not in found]
    return found


def give(rig: Rig, one: ev.RequestToken, text: str = "secret-token-1", life_ms: int = HOUR_MS) -> None:
    rig.step(ev.TokenGiven(one.op, text, rig.wall + life_ms))


def content(rig: Rig) -> list[bytes]:
    (plan,) = rig.one(ev.MountVolumes).volumes
    assert isinstance(plan, FilesPlan)
    return [one.data for one in plan.files]


def test_a_pod_waits_for_its_first_token_and_then_starts_with_it() -> None:
    rig = waiting()
    assert not rig.running()
    assert "waiting for a token from the cloud" in rig.why()["reasons"][0]["why"]
    assert "FailedMount" not in rig.reasons()  # every pod with a token waits for a moment
    (one,) = asked(rig)
    assert (one.uid, one.namespace, one.pod) == ("uid-web", "default", "web")
    assert (one.service_account, one.audience, one.expiration_s) == ("robot", "", 3600)
    give(rig, one)
    assert content(rig) == [b"secret-token-1"]
    rig.settle()
    assert rig.running()
    assert rig.edge.view.cloud()["tokens_waiting"] == 0


def test_each_audience_has_a_token_of_its_own() -> None:
    rig = waiting("vault", "")
    first, second = asked(rig)
    give(rig, first, "for-vault")
    assert not rig.ordered(ev.MountVolumes)
    give(rig, second, "for-api")
    assert content(rig) == [b"for-vault", b"for-api"]


def test_without_a_link_nothing_is_asked_and_with_the_next_it_is() -> None:
    rig = waiting(link=False)
    asked(rig)
    rig.advance(600)
    assert not asked(rig)
    rig.link()
    assert len(asked(rig)) == 1


def test_a_token_is_renewed_at_four_fifths_of_its_life_and_the_file_follows() -> None:
    rig = waiting()
    give(rig, asked(rig)[0])
    rig.settle()
    started = rig.running()["main"].id
    rig.advance(0.79 * 3600)
    assert not asked(rig)
    rig.advance(0.02 * 3600)
    (again,) = asked(rig)
    give(rig, again, "secret-token-2")
    assert content(rig) == [b"secret-token-2"]
    rig.settle()
    assert rig.running()["main"].id == started


def test_a_clock_that_is_not_trusted_renews_by_the_time_that_has_passed_in_this_life_alone() -> None:
    rig = waiting()
    give(rig, asked(rig)[0])
    rig.settle()
    rig.trusted = False
    rig.wall += 10 * HOUR_MS
    rig.step()
    assert not asked(rig)
    rig.advance(0.81 * 3600)
    assert len(asked(rig)) == 1
    rig.power_cut()
    rig.join()
    rig.link()
    rig.advance(7200)
    assert not asked(rig)


def test_a_clock_that_is_set_while_there_is_a_link_is_noticed() -> None:
    rig = waiting()
    give(rig, asked(rig)[0])
    rig.settle()
    rig.wall += HOUR_MS
    rig.advance(601)
    assert len(asked(rig)) == 1


def test_a_token_that_has_run_out_is_kept_while_there_is_no_link_and_over_a_power_cut() -> None:
    rig = waiting()
    give(rig, asked(rig)[0])
    rig.settle()
    rig.unlink()
    rig.advance(7200)
    rig.power_cut()
    rig.join()
    rig.settle()
    assert rig.running()
    rig.link()
    assert len(asked(rig)) == 1


def test_a_refused_token_is_asked_for_again_later_and_later() -> None:
    rig = waiting()
    times: list[int] = []
    for _ in range(200):
        for one in asked(rig):
            times.append(rig.now)
            rig.step(ev.TokenGiven(one.op, error="the policy allows no token"))
        rig.advance(1)
    assert [(b - a) // 1000 for a, b in pairwise(times)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert rig.reasons().count("FailedToCreateToken") == 1


def test_what_makes_no_sense_to_ask_again_is_asked_rarely() -> None:
    rig = waiting()
    rig.step(ev.TokenGiven(asked(rig)[0].op, error="no such account", retryable=False))
    rig.advance(299)
    assert not asked(rig)
    rig.advance(2)
    assert len(asked(rig)) == 1


def test_an_answer_over_a_link_that_has_gone_says_nothing() -> None:
    rig = waiting()
    (one,) = asked(rig)
    rig.unlink()
    give(rig, one)
    assert not rig.tables.get("token")


def test_the_token_of_a_pod_that_is_gone_is_deleted() -> None:
    rig = waiting()
    give(rig, asked(rig)[0])
    rig.settle()
    assert rig.tables["token"]
    rig.put(deleted(cloud_pod("web", volumes=volume(), serviceAccountName="robot"), 0))
    rig.settle()
    assert not rig.tables["token"]


def test_a_token_whose_pod_is_no_more_is_deleted_at_boot() -> None:
    rig = waiting()
    rig.tables.setdefault("token", {})["uid-other abc"] = wire.encode(wire.TokenRow("x", 1))
    rig.boot("crash")
    assert not rig.tables["token"]


def test_a_pod_of_a_file_gets_an_empty_file_and_nobody_is_asked() -> None:
    rig = Rig()
    rig.boot()
    rig.join()
    rig.link()
    rig.apply(pod("web", volumes=volume()))
    assert content(rig) == [b""]
    assert not asked(rig)
    assert "ServiceAccountTokenMissing" in rig.reasons()


def test_a_token_stands_in_no_note_no_event_and_no_repr() -> None:
    rig = waiting()
    (one,) = asked(rig)
    given = ev.TokenGiven(one.op, "secret-token-1", rig.wall + HOUR_MS)
    rig.step(given)
    rows = repr(rig.edge.view._desk.tables.tokens)
    shown = repr(given) + rows + repr(rig.notes) + repr(rig.pending) + repr(rig.edge.view.events()) + repr(rig.sent)
    assert "secret-token" not in shown
    assert b"secret-token-1" in list(rig.edge.view.secret_values())
