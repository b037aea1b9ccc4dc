"""Who may join and connect. Each rule is tried from the side of one who wants to get round it."""

from __future__ import annotations

import base64
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from cloud_gateway import limits
from cloud_gateway.core import authority
from cloud_gateway.core.authority import (
    DAY_S,
    Admitted,
    Asked,
    CertFacts,
    Policy,
    Refused,
    State,
    may_connect,
    may_join,
    verify_token,
)
from tinyedge.errors import BadInput
from tinyedge.protocol import joining
from tinyedge.protocol.joining import Claims, Taint

NOW = 1_790_000_000
POLICY = Policy()
KEY = authority.token_key(b"a private key")
CA = bytes(range(32))
HERE, THERE = "aa" * 16, "bb" * 16
MINE, OTHER = "11" * 16, "22" * 16  # digests of public keys


def token(seed: int = 0, **kwargs: object) -> str:
    given: dict[str, object] = {"node": "gate-7", "ttl_s": 3600, "now_s": NOW, "ca": CA}
    if "pattern" in kwargs:
        del given["node"]
    return authority.make_token(KEY, random=Random(seed).randbytes(12), **(given | kwargs))  # type: ignore[arg-type]


def claims(seed: int = 0, **kwargs: object) -> Claims:
    return verify_token(KEY, token(seed, **kwargs), NOW)


def join(  # noqa: PLR0917 - short calls read better here
    state: State, claimed: Claims, name: str = "", machine: str = HERE, key: str = MINE, line: str = "01" * 8
) -> Admitted:
    return may_join(state, claimed, Asked(name, machine, key), line=line, now_s=NOW, policy=POLICY)


def facts(name: str = "gate-7", line: str = "01" * 8, ends_s: int = NOW + 90 * DAY_S) -> CertFacts:
    return CertFacts(name, line + "99" * 8, NOW, ends_s)


def joined(line: str = "01" * 8, machine: str = HERE) -> State:
    return join(State(), claims(), machine=machine, line=line).state


def reason(error: pytest.ExceptionInfo[Refused]) -> str:
    assert error.value.what
    assert error.value.reason
    return error.value.reason


# --- tokens ------------------------------------------------------------------------------------------


def test_a_token_says_what_it_was_made_for() -> None:
    found = claims(labels={"site": "north"}, taints=(Taint("a", "NoExecute", "b"),))
    assert (found.node, found.pattern, found.expires_s, found.ca) == ("gate-7", "", NOW + 3600, CA)
    assert found.labels == {"site": "north"}
    assert found.taints == [Taint("a", "NoExecute", "b")]


def test_a_token_can_be_read_by_who_can_not_check_it() -> None:
    assert joining.read_token(token()) == claims()


def test_a_token_is_short_enough_to_be_pasted() -> None:
    assert len(token()) < 180


def test_a_token_made_with_another_key_is_refused() -> None:
    with pytest.raises(Refused, match="not valid here") as error:
        verify_token(authority.token_key(b"another private key"), token(), NOW)
    assert reason(error) == "BadToken"


def test_a_token_whose_words_were_changed_is_refused() -> None:
    packed, mac = joining.unseal(token())
    forged = changed(joining.claims_of(packed), node="gate-8")
    with pytest.raises(Refused) as error:
        verify_token(KEY, joining.seal(msgspec.msgpack.encode(forged), mac), NOW)
    assert reason(error) == "BadToken"


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_no_bit_of_a_token_can_be_changed(at: int, by: int) -> None:
    good = token()
    data = bytearray(base64.urlsafe_b64decode(good[4:] + "=" * (-len(good[4:]) % 4)))
    data[at % len(data)] ^= by
    with pytest.raises(Refused):
        verify_token(KEY, joining.seal(bytes(data), b""), NOW)


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda data: joining.seal(data, b"")))
def test_what_is_no_token_is_refused_and_never_shown(text: str) -> None:
    with pytest.raises(Refused) as error:
        verify_token(KEY, text, NOW)
    assert len(text) < 8 or text not in str(error.value)


def test_a_token_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(Refused):
        verify_token(KEY, "te1." + "A" * 1_000_000, NOW)


def test_a_token_ends_when_it_says_so() -> None:
    assert verify_token(KEY, token(), NOW + 3599)
    with pytest.raises(Refused) as error:
        verify_token(KEY, token(), NOW + 3600)
    assert reason(error) == "TokenExpired"


@pytest.mark.parametrize(
    "wrong",
    [
        {"node": ""},
        {"node": "Gate 7"},
        {"node": "x" * 64},
        {"node": "gate-7", "pattern": "gate-*"},
        {"pattern": "gate-[0-9]"},
        {"pattern": "../*"},
        {"ttl_s": 0},
        {"ttl_s": limits.TOKEN_TTL_S_MAX + 1},
        {"labels": {"not a key": "x"}},
        {"labels": {"site": "not a value"}},
        {"labels": {f"l{i}": "" for i in range(limits.JOIN_LABELS_MAX + 1)}},
        {"taints": (Taint("a", "Sometimes"),)},
        {"taints": (Taint("a b", "NoExecute"),)},
        {"taints": tuple(Taint(f"t{i}", "NoExecute") for i in range(limits.JOIN_TAINTS_MAX + 1))},
    ],
    ids=str,
)
def test_no_token_is_made_for_what_could_not_join(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        authority.make_token(
            KEY,
            **({"node": "" if "pattern" in wrong else "gate-7", "ttl_s": 60} | wrong),  # type: ignore[arg-type]
            now_s=NOW,
            ca=CA,
            random=bytes(12),
        )


# --- joining -----------------------------------------------------------------------------------------


def test_a_join_binds_the_name_to_the_machine() -> None:
    admitted = join(State(), claims())
    assert (admitted.name, admitted.line, admitted.rebound) == ("gate-7", "01" * 8, False)
    assert admitted.state.bindings["gate-7"].machine == HERE


def test_a_token_counts_once() -> None:
    with pytest.raises(Refused) as error:
        join(joined(), claims(), machine=THERE, key=OTHER)
    assert reason(error) == "TokenUsed"


def test_a_token_for_a_pattern_counts_once_for_another_name_too() -> None:
    any_gate = claims(pattern="gate-*")
    state = join(State(), any_gate, "gate-1").state
    with pytest.raises(Refused) as error:
        join(state, any_gate, "gate-2", THERE, OTHER)
    assert reason(error) == "TokenUsed"


def test_who_did_not_hear_the_answer_may_ask_again_with_the_same_key() -> None:
    state = joined()
    again = join(state, claims(), line="02" * 8)
    assert (again.again, again.line, again.state is state) == (True, "01" * 8, True)


@pytest.mark.parametrize("other", [{"machine": THERE}, {"key": OTHER}], ids=str)
def test_a_used_token_says_nothing_to_another_key_or_machine(other: dict[str, str]) -> None:
    with pytest.raises(Refused) as error:
        join(joined(), claims(), **other)
    assert reason(error) == "TokenUsed"


def test_asking_again_does_not_undo_a_revocation_or_a_replacement() -> None:
    with pytest.raises(Refused):
        join(authority.revoke(joined(), "gate-7", NOW), claims())
    with pytest.raises(Refused):
        join(authority.delete(joined(), "gate-7", NOW, POLICY), claims())
    marked = authority.replace(joined(), "gate-7", NOW)
    assert "gate-7" in join(marked, claims()).state.replace
    moved = join(marked, claims(1), machine=THERE, key=OTHER, line="02" * 8).state
    with pytest.raises(Refused):
        join(moved, claims())


def test_a_token_for_one_node_is_for_no_other() -> None:
    assert join(State(), claims(), "gate-7").name == "gate-7"
    with pytest.raises(Refused) as error:
        join(State(), claims(), "gate-8")
    assert reason(error) == "WrongName"


@pytest.mark.parametrize("name", ["gate-", "gate-123", "door-12", "GATE-12", "", "gate-1/", "gate-..", "x" * 64])
def test_a_pattern_gives_only_names_that_fit_it(name: str) -> None:
    with pytest.raises(Refused) as error:
        join(State(), claims(pattern="gate-??"), name)
    assert reason(error) == "WrongName"


def test_a_pattern_gives_a_name_that_fits_it() -> None:
    assert join(State(), claims(pattern="gate-??"), "gate-12").name == "gate-12"


@pytest.mark.parametrize("machine", [HERE, THERE])
def test_a_pattern_can_not_claim_a_name_that_is_bound(machine: str) -> None:
    with pytest.raises(Refused, match="node replace gate-7") as error:
        join(joined(), claims(1, pattern="*"), "gate-7", machine, OTHER)
    assert reason(error) == "NameBound"


def test_a_token_for_the_name_brings_the_same_machine_back() -> None:
    admitted = join(joined(), claims(1), key=OTHER, line="02" * 8)
    assert (admitted.rebound, admitted.line) == (True, "02" * 8)
    assert may_connect(admitted.state, facts(line="01" * 8), HERE, NOW, POLICY).reason == "Replaced"


def test_a_token_for_the_name_does_not_bring_another_machine() -> None:
    with pytest.raises(Refused, match="node replace gate-7") as error:
        join(joined(), claims(1), machine=THERE, key=OTHER)
    assert reason(error) == "NameBound"


@pytest.mark.parametrize("how", [{}, {"pattern": "gate-*"}], ids=["by name", "by pattern"])
def test_a_replacement_is_allowed_once(how: dict[str, str]) -> None:
    state = authority.replace(joined(), "gate-7", NOW)
    moved = join(state, claims(1, **how), "gate-7", THERE, OTHER, "02" * 8).state
    assert moved.bindings["gate-7"].machine == THERE
    with pytest.raises(Refused) as error:
        join(moved, claims(2, **how), "gate-7", HERE, MINE, "03" * 8)
    assert reason(error) == "NameBound"


def test_a_revoked_machine_does_not_come_back_by_a_token_for_its_name() -> None:
    with pytest.raises(Refused, match="revoked") as error:
        join(authority.revoke(joined(), "gate-7", NOW), claims(1))
    assert reason(error) == "NameBound"


def test_revoking_takes_back_a_replacement_that_was_allowed() -> None:
    state = authority.revoke(authority.replace(joined(), "gate-7", NOW), "gate-7", NOW)
    with pytest.raises(Refused):
        join(state, claims(1), machine=THERE, key=OTHER)


def test_a_machine_must_be_named_by_a_digest() -> None:
    with pytest.raises(Refused) as error:
        join(State(), claims(), machine="x" * 1000)
    assert reason(error) == "BadRequest"


# --- connecting --------------------------------------------------------------------------------------


def test_who_has_joined_may_connect() -> None:
    assert may_connect(joined(), facts(), HERE, NOW, POLICY).kind == "ok"


def test_a_twin_on_another_machine_is_refused_by_name() -> None:
    verdict = may_connect(joined(), facts(), THERE, NOW, POLICY)
    assert (verdict.kind, verdict.reason) == ("refused", "Twin")
    assert "node replace gate-7" in verdict.message


def test_a_revoked_node_is_refused_with_every_certificate_of_its_line() -> None:
    state = authority.revoke(joined(), "gate-7", NOW)
    for last in ("00", "77", "ff"):
        certificate = CertFacts("gate-7", "01" * 8 + last * 8, NOW, NOW + 90 * DAY_S)
        assert may_connect(state, certificate, HERE, NOW, POLICY).reason == "Revoked"


def test_a_revocation_is_remembered_through_a_replacement_and_a_deletion() -> None:
    revoked = authority.revoke(joined(), "gate-7", NOW)
    moved = join(authority.replace(revoked, "gate-7", NOW), claims(1), machine=THERE, key=OTHER, line="02" * 8).state
    assert may_connect(moved, facts(), HERE, NOW, POLICY).reason == "Revoked"
    assert may_connect(moved, facts(line="02" * 8), THERE, NOW, POLICY).kind == "ok"
    deleted = authority.delete(revoked, "gate-7", NOW, POLICY)
    assert may_connect(deleted, facts(), HERE, NOW, POLICY).reason == "Revoked"


def test_what_explains_a_refusal_is_forgotten_and_the_refusal_stays() -> None:
    state = authority.delete(joined(), "gate-7", NOW, POLICY)
    late = NOW + POLICY.life_s + POLICY.grace_s
    assert state.revoked
    kept = authority.decode_state(authority.encode_state(state, late))
    assert not kept.revoked
    assert may_connect(kept, facts(), HERE, late, POLICY).reason == "Unknown"


def test_a_deleted_node_and_one_that_left_are_refused_and_their_names_are_free() -> None:
    for state, why in (
        (authority.delete(joined(), "gate-7", NOW, POLICY), "Deleted"),
        (authority.leave(joined(), facts(), NOW, POLICY), "Left"),
    ):
        assert may_connect(state, facts(), HERE, NOW, POLICY).reason == why
        assert join(state, claims(1, pattern="*"), "gate-7", THERE, OTHER, "02" * 8).name == "gate-7"


def test_a_node_can_not_make_another_one_leave() -> None:
    state = join(joined(), claims(1), key=OTHER, line="02" * 8).state  # the certificate of line 01 is an old one
    assert authority.leave(state, facts(line="01" * 8), NOW, POLICY) is state
    assert authority.leave(state, facts(name="gate-8"), NOW, POLICY) is state


def test_a_revoked_node_can_not_free_its_name_by_leaving() -> None:
    with pytest.raises(Refused):
        authority.leave(authority.revoke(joined(), "gate-7", NOW), facts(), NOW, POLICY)


def test_a_certificate_for_a_name_that_nobody_has_is_refused() -> None:
    assert may_connect(State(), facts(), HERE, NOW, POLICY).reason == "Unknown"
    assert may_connect(joined(), facts(name=""), HERE, NOW, POLICY).reason == "Unknown"
    assert may_connect(joined(), facts(name="gate-8"), HERE, NOW, POLICY).reason == "Unknown"


def test_a_certificate_that_ran_out_gets_in_to_be_renewed_within_the_grace_time() -> None:
    ends = NOW + 90 * DAY_S

    def at(now_s: int, policy: Policy = POLICY) -> str:
        return may_connect(joined(), facts(), HERE, now_s, policy).kind

    assert [at(ends), at(ends + 1), at(ends + 400 * DAY_S), at(ends + 400 * DAY_S + 1)] == [
        "ok",
        "renew",
        "renew",
        "refused",
    ]
    assert at(ends + 1, Policy(grace_s=0)) == "refused"
    assert may_connect(joined(), facts(), HERE, ends + 1, Policy(grace_s=0)).reason == "Expired"


def test_the_grace_time_helps_nobody_who_is_revoked_or_a_twin() -> None:
    late = NOW + 91 * DAY_S
    assert may_connect(authority.revoke(joined(), "gate-7", NOW), facts(), HERE, late, POLICY).reason == "Revoked"
    assert may_connect(joined(), facts(), THERE, late, POLICY).reason == "Twin"


def test_only_who_may_connect_may_renew() -> None:
    authority.may_renew(joined(), facts(), HERE, NOW + 100 * DAY_S, POLICY)
    for state, certificate, machine in (
        (authority.revoke(joined(), "gate-7", NOW), facts(), HERE),
        (joined(), facts(line="05" * 8), HERE),
        (joined(), facts(), THERE),
        (joined(), facts(ends_s=NOW - POLICY.grace_s - 1), HERE),
    ):
        with pytest.raises(Refused):
            authority.may_renew(state, certificate, machine, NOW, POLICY)


# --- changes by the operator -------------------------------------------------------------------------


@pytest.mark.parametrize("change", [authority.revoke, authority.replace])
def test_what_nobody_has_joined_as_can_not_be_changed(change: object) -> None:
    with pytest.raises(Refused) as error:
        change(State(), "gate-9", NOW)  # type: ignore[operator]
    assert reason(error) == "Unknown"


def test_revoking_twice_keeps_the_first_time() -> None:
    state = authority.revoke(authority.revoke(joined(), "gate-7", NOW), "gate-7", NOW + 5)
    assert state.bindings["gate-7"].revoked_s == NOW


# --- labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "kubernetes.io/hostname",
        "node-role.kubernetes.io/control-plane",
        "node-restriction.kubernetes.io/pci",
        "Node-Restriction.Kubernetes.io/pci",
        "foo.k8s.io/x",
        "k8s.io/x",
        "tinyedge.io/autonomy",
        "topology.kubernetes.io.kubernetes.io/zone",
    ],
)
def test_a_node_may_not_give_itself_labels_that_the_cluster_trusts(key: str) -> None:
    with pytest.raises(Refused) as error:
        authority.granted(claims(), {key: "x"}, ())
    assert reason(error) in ("NotAllowed", "BadRequest")


@pytest.mark.parametrize(
    "key", ["site", "example.com/site", "topology.kubernetes.io/zone", "node.kubernetes.io/instance-type", "xk8s.io/a"]
)
def test_a_node_may_give_itself_what_a_kubelet_may(key: str) -> None:
    assert authority.granted(claims(), {key: "x"}, ())[0] == {key: "x"}


def test_a_node_may_not_give_itself_taints_that_the_cluster_trusts() -> None:
    assert authority.granted(claims(), {}, (Taint("site", "NoExecute"),))[1]
    for key in ("node.kubernetes.io/unreachable", "tinyedge.io/disconnected"):
        with pytest.raises(Refused) as error:
            authority.granted(claims(), {}, (Taint(key, "NoExecute"),))
        assert reason(error) == "NotAllowed"


def test_what_the_token_says_goes_before_what_the_node_says() -> None:
    token_says = claims(labels={"site": "north", "node-role.kubernetes.io/edge": ""}, taints=(Taint("t", "NoExecute"),))
    labels, taints = authority.granted(token_says, {"site": "south", "rack": "1"}, (Taint("t", "NoExecute", "mine"),))
    assert labels == {"site": "north", "rack": "1", "node-role.kubernetes.io/edge": ""}
    assert taints == (Taint("t", "NoExecute"),)


def test_a_label_that_is_none_is_refused() -> None:
    for labels in ({"a b": ""}, {"a": "b c"}, {"a": "x" * 64}, {f"l{i}": "" for i in range(100)}):
        with pytest.raises(Refused) as error:
            authority.granted(claims(), labels, ())
        assert reason(error) == "BadRequest"


# --- the state ---------------------------------------------------------------------------------------


def test_the_state_survives_its_secret() -> None:
    state = authority.replace(authority.revoke(joined(), "gate-7", NOW), "gate-7", NOW)
    state = authority.delete(join(state, claims(1, pattern="*"), "other", line="02" * 8).state, "other", NOW, POLICY)
    assert authority.decode_state(authority.encode_state(state, NOW)) == state


def test_an_empty_secret_is_an_empty_state() -> None:
    assert authority.decode_state(b"{}") == State()


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"bindings":{"a":1}}', b'{"version":2}', b"[" * 100_000])
def test_what_is_no_state_is_not_taken_for_an_empty_one(data: bytes) -> None:
    with pytest.raises(BadInput):
        authority.decode_state(data)


def test_used_tokens_are_remembered_until_they_end_and_no_longer() -> None:
    state = joined()
    assert authority.decode_state(authority.encode_state(state, NOW + 3599)).used
    assert not authority.decode_state(authority.encode_state(state, NOW + 3600)).used


def test_a_state_that_does_not_fit_is_refused_before_kubernetes_does() -> None:
    binding = joined().bindings["gate-7"]
    full = State(bindings={f"gate-{i}": binding for i in range(20_000)})
    with pytest.raises(Refused) as error:
        authority.encode_state(full, NOW)
    assert reason(error) == "TooMany"


def test_three_thousand_nodes_that_joined_just_now_fit() -> None:
    state = joined()
    used, binding = next(iter(state.used.values())), state.bindings["gate-7"]
    names = [f"site-0123-gate-{i:05}" for i in range(3000)]
    many = State(
        used={f"{i:024x}": changed(used, name=name) for i, name in enumerate(names)},
        bindings=dict.fromkeys(names, binding),
    )
    assert len(authority.encode_state(many, NOW)) <= limits.IDENTITY_STATE_BYTES_MAX


def test_explanations_are_bounded_and_the_newest_stay() -> None:
    state = joined()
    for i in range(limits.IDENTITY_REVOKED_MAX + 10):
        entry = authority.Revoked("gate-7", "Replaced", NOW + i, NOW + 10**6)
        state.revoked[f"{i:016x}"] = entry
    kept = authority.trimmed(state, NOW).revoked
    assert len(kept) == limits.IDENTITY_REVOKED_MAX
    assert f"{limits.IDENTITY_REVOKED_MAX + 9:016x}" in kept
