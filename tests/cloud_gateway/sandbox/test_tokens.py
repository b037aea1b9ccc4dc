"""Tokens and reviews: whose is it, for whom, until when; and every way to get in with one that is not."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cloud_gateway.sandbox.status import Refused
from cloud_gateway.sandbox.tokens import (
    ADMIN,
    API_AUDIENCE,
    TRUSTED,
    Tokens,
    User,
    access_review,
    denied,
    may,
    may_read,
)

Json = dict[str, Any]


class World:
    """What the API holds, and the clock."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 1_800_000_000.0
        self.account: Json = {"metadata": {"name": "app", "namespace": "default", "uid": "sa-1"}}
        self.objects: dict[tuple[str, str, str], Json] = {
            ("serviceaccounts", "default", "app"): self.account,
            ("pods", "default", "web"): {
                "metadata": {"name": "web", "namespace": "default", "uid": "pod-1"},
                "spec": {"serviceAccountName": "app", "nodeName": "edge-1"},
            },
            ("nodes", "", "edge-1"): {"metadata": {"name": "edge-1", "uid": "node-1"}},
        }
        self.tokens = Tokens(folder, wall_s=lambda: self.now_s)

    def find(self, plural: str, namespace: str, name: str) -> Json | None:
        return self.objects.get((plural, namespace, name))

    def request(self, **spec: Any) -> Json:
        return self.tokens.request({"spec": spec}, self.account, self.find)

    def token(self, **spec: Any) -> str:
        token: str = self.request(**spec)["status"]["token"]
        return token

    def user(self, token: str, *audiences: str) -> User | None:
        return self.tokens.authenticate(token, self.find, audiences or (API_AUDIENCE,))

    def review(self, token: str, *audiences: str) -> Json:
        spec: Json = {"token": token, **({"audiences": list(audiences)} if audiences else {})}
        status: Json = self.tokens.review({"spec": spec}, self.find)["status"]
        return status


WEB = {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": "pod-1"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def segments(token: str) -> list[Json]:
    return [json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2]]


def text(data: bytes | Json) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


# --- tokens ---


def test_a_token_request_is_answered_as_kubernetes_does(world: World) -> None:
    answer = world.request(expirationSeconds=3600, boundObjectRef=None)
    metadata = answer.pop("metadata")
    assert set(answer.pop("status")) == {"token", "expirationTimestamp"}
    assert answer == {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "spec": {"audiences": [API_AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": None},
    }
    assert (metadata["name"], metadata["namespace"]) == ("app", "default")
    assert metadata["creationTimestamp"] == "2027-01-15T08:00:00Z"


def test_it_ends_when_it_says(world: World) -> None:
    answer = world.request(expirationSeconds=600)
    assert answer["status"]["expirationTimestamp"] == "2027-01-15T08:10:00Z"
    token = answer["status"]["token"]
    world.now_s += 599
    assert world.user(token) is not None
    world.now_s += 1
    assert world.user(token) is None
    assert "expired" in world.review(token)["error"]


def test_the_token_says_what_a_token_of_kubernetes_says(world: World) -> None:
    header, claims = segments(world.token(boundObjectRef=WEB, audiences=["vault"]))
    assert header == {"alg": "ES256", "typ": "JWT"}
    assert claims.pop("jti")
    assert claims == {
        "aud": ["vault"],
        "exp": 1_800_003_600,
        "iat": 1_800_000_000,
        "nbf": 1_800_000_000,
        "iss": API_AUDIENCE,
        "sub": "system:serviceaccount:default:app",
        "kubernetes.io": {
            "namespace": "default",
            "serviceaccount": {"name": "app", "uid": "sa-1"},
            "pod": {"name": "web", "uid": "pod-1"},
            "node": {"name": "edge-1", "uid": "node-1"},
        },
    }


def test_others_can_check_it_with_the_public_key(world: World, tmp_path: Path) -> None:
    signed, _, signature = world.token().rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    key = serialization.load_pem_private_key((tmp_path / "tokens.pem").read_bytes(), None).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    pair = utils.encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    key.verify(pair, signed.encode(), ec.ECDSA(hashes.SHA256()))


def test_a_review_tells_whose_it_is(world: World) -> None:
    status = world.review(world.token(boundObjectRef=WEB))
    credential = status["user"]["extra"].pop("authentication.kubernetes.io/credential-id")
    assert credential[0].startswith("JTI=")
    assert status == {
        "authenticated": True,
        "user": {
            "username": "system:serviceaccount:default:app",
            "uid": "sa-1",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/node-name": ["edge-1"],
                "authentication.kubernetes.io/node-uid": ["node-1"],
                "authentication.kubernetes.io/pod-name": ["web"],
                "authentication.kubernetes.io/pod-uid": ["pod-1"],
            },
        },
        "audiences": [API_AUDIENCE],
    }


def test_the_admins_review_is_the_recorded_one(world: World) -> None:
    assert world.review(world.tokens.admin_token) == {
        "authenticated": True,
        "user": {"username": "admin", "uid": "admin-uid", "groups": ["system:masters", "system:authenticated"]},
        "audiences": [API_AUDIENCE],
    }


def test_a_token_for_others_does_not_open_the_api(world: World) -> None:
    token = world.token(audiences=["vault"])
    assert world.user(token) is None
    assert world.user(token, "vault", "db") is not None
    assert world.review(token, "vault", "db")["audiences"] == ["vault"]
    refused = world.review(token)
    assert "authenticated" not in refused
    assert refused["user"] == {}
    assert 'token audiences ["vault"] is invalid for the target audiences' in refused["error"]
    assert world.review(world.tokens.admin_token, "vault").get("authenticated") is None


@pytest.mark.parametrize("gone", [("pods", "default", "web"), ("serviceaccounts", "default", "app")])
def test_a_token_ends_with_its_pod_and_its_account_also_when_their_names_live_on(
    world: World, gone: tuple[str, str, str]
) -> None:
    token = world.token(boundObjectRef=WEB)
    assert world.user(token) is not None
    world.objects[gone] = {**world.objects[gone], "metadata": {**world.objects[gone]["metadata"], "uid": "another"}}
    assert world.user(token) is None
    del world.objects[gone]
    assert world.user(token) is None


def test_a_token_outlives_the_node_of_its_pod(world: World) -> None:
    token = world.token(boundObjectRef=WEB)
    del world.objects["nodes", "", "edge-1"]
    assert world.user(token) is not None


def test_no_forged_token_gets_in(world: World) -> None:
    token = world.token()
    header, payload, signature = token.split(".")
    _, claims = segments(token)
    key = ec.generate_private_key(ec.SECP256R1())
    r, s = utils.decode_dss_signature(key.sign(f"{header}.{payload}".encode(), ec.ECDSA(hashes.SHA256())))
    master = text(claims | {"sub": "admin"})
    forged = [
        f"{header}.{payload}.{text(r.to_bytes(32) + s.to_bytes(32))}",
        f"{header}.{master}.{signature}",
        f"{text({'alg': 'none', 'typ': 'JWT'})}.{master}.",
        f"{text({'alg': 'HS256', 'typ': 'JWT'})}.{master}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}.{signature[:-4]}",
        f"{header}.{payload}.{text(bytes(64))}",
        f"{header}.{payload}",
        f"{token}.{signature}",
        payload,
        "",
        "..",
        "x" * 100_000,
        "é.ü.ß",
        world.tokens.admin_token[:-1],
    ]
    assert world.user(token) is not None
    assert [one[:40] for one in forged if world.user(one) is not None] == []


def test_a_restart_keeps_every_token_good(world: World, tmp_path: Path) -> None:
    token = world.token()
    again = World(tmp_path)
    assert again.user(token) is not None
    assert again.tokens.admin_token == world.tokens.admin_token
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_another_sandbox_knows_none_of_them(world: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert World(tmp_path / "other").user(world.token()) is None


def test_more_tokens_than_are_remembered_stay_good(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_gateway.sandbox.tokens._KNOWN_MAX", 2)
    tokens = [world.token() for _ in range(4)]
    assert all(world.user(one) for one in tokens * 2)


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ({"expirationSeconds": 599}, 422, "Invalid value: 599: may not specify a duration less than 10 minutes"),
        ({"expirationSeconds": 1 << 33}, 422, "may not specify a duration larger than 2^32 seconds"),
        ({"expirationSeconds": "600"}, 400, "expirationSeconds"),
        ({"boundObjectRef": {**WEB, "name": "none"}}, 404, 'pods "none" not found'),
        ({"boundObjectRef": {**WEB, "uid": "old"}}, 409, "the UID in the bound object reference (old) does not match"),
        ({"boundObjectRef": {**WEB, "kind": "Job"}}, 400, "cannot bind token to object of type"),
    ],
)
def test_what_can_not_be_given_is_refused(world: World, spec: Json, code: int, words: str) -> None:
    with pytest.raises(Refused) as refused:
        world.request(**spec)
    assert refused.value.code == code
    assert words in refused.value.message


def test_a_token_can_not_be_bound_to_a_pod_of_another_account(world: World) -> None:
    world.objects["pods", "default", "web"]["spec"]["serviceAccountName"] = "other"
    with pytest.raises(Refused, match="different serviceaccount name"):
        world.token(boundObjectRef=WEB)


def test_a_review_without_a_token_is_refused(world: World) -> None:
    with pytest.raises(Refused, match="token is required"):
        world.tokens.review({"spec": {}}, world.find)


# --- what they may ---

APP = User("system:serviceaccount:default:app", "sa-1", ("system:serviceaccounts", "system:authenticated"))
LOGS = {"verb": "get", "resource": "nodes", "subresource": "proxy", "name": "edge-1"}


def reviewed(kind: str = "SubjectAccessReview", asker: User = ADMIN, **spec: Any) -> Json:
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
    status: Json = access_review(body, asker)["status"]
    return status


def test_the_recorded_review_of_the_admin_is_answered_so() -> None:
    spec = {"resourceAttributes": LOGS, "user": "admin", "groups": ["system:masters"]}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    assert access_review(body, APP) == {
        "kind": "SubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {},
        "spec": spec,
        "status": {"allowed": True},
    }


def test_only_masters_and_the_gateway_may() -> None:
    assert reviewed(user=next(iter(TRUSTED)), resourceAttributes=LOGS)["allowed"]
    refused = reviewed(user="admin", groups=["system:authenticated"], resourceAttributes=LOGS)
    assert not refused["allowed"]
    assert "no RBAC" in refused["reason"]


def test_who_asks_about_himself_is_judged_as_himself_whatever_he_writes() -> None:
    wanted = {"resourceAttributes": LOGS, "user": "admin", "groups": ["system:masters"]}
    assert not reviewed("SelfSubjectAccessReview", APP, **wanted)["allowed"]
    assert reviewed("SelfSubjectAccessReview", ADMIN, resourceAttributes=LOGS)["allowed"]


def test_everybody_may_ask_who_he_is() -> None:
    body = {"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}
    assert access_review(body, APP)["status"]["userInfo"]["username"] == APP.username
    assert may(APP, "create", "selfsubjectreviews", "authentication.k8s.io")
    assert not may(APP, "list", "pods", "")
    assert not may(APP, "create", "subjectaccessreviews", "authorization.k8s.io")
    assert may_read(APP, "/apis/apps/v1")
    assert not may_read(APP, "/metrics")
    assert not may_read(APP, "/apisecret")


@pytest.mark.parametrize(
    "spec",
    [
        {"user": "a"},
        {"user": "a", "resourceAttributes": LOGS, "nonResourceAttributes": {"path": "/", "verb": "get"}},
        {"resourceAttributes": LOGS},
    ],
)
def test_a_review_that_asks_nothing_is_refused(spec: Json) -> None:
    with pytest.raises(Refused) as refused:
        reviewed(**spec)
    assert refused.value.code == 422


def test_paths_are_reviewed_too() -> None:
    reading, writing = ({"path": "/version", "verb": verb} for verb in ("get", "post"))
    assert reviewed(user="x", nonResourceAttributes=reading)["allowed"]
    assert not reviewed(user="x", nonResourceAttributes=writing)["allowed"]


def test_a_refusal_says_it_in_kubernetes_words() -> None:
    assert denied(APP, "list", "pods", "", namespace="default").message == (
        'pods is forbidden: User "system:serviceaccount:default:app" cannot list resource "pods" in API group "" '
        'in the namespace "default"'
    )
    assert denied(APP, "get", "leases", "coordination.k8s.io", name="x").message.endswith("at the cluster scope")
