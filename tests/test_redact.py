"""Redaction: every spelling of a secret's value that can be known, and nothing else."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncGenerator

from hypothesis import given
from hypothesis import strategies as st

from tinyedge.events import OpDone, ProbeDone, RuntimeDown
from tinyedge.model.runtime import ContainerSeen, ContainerState, PodSeen
from tinyedge.redact import REDACTED, Redactor, without_secrets


def test_a_value_is_found_as_it_is_in_base64_and_in_json() -> None:
    value = b'p"ss\\w\xc3\xb6rd'
    redactor = Redactor([value])
    for text in (value.decode(), b64encode(value).decode(), json.dumps(value.decode(), ensure_ascii=False)[1:-1]):
        assert redactor.text(f"a {text} b") == f"a {REDACTED} b"


def test_each_line_of_a_key_is_found() -> None:
    key = b"-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
    assert Redactor([key]).text("it said: hkiG9w0BAQEFAASC!") == f"it said: {REDACTED}!"


def test_words_that_are_too_short_to_be_told_from_text_stay() -> None:
    assert Redactor([b"on", b"", b"  \n"]).text("turn it on") == "turn it on"


def test_json_stays_json_and_its_keys_stay() -> None:
    document = b'{"true": [true, "true story", {"pass": "true"}], "n": 1}'
    assert json.loads(Redactor([b"true"]).json(document)) == {
        "true": [True, f"{REDACTED} story", {"pass": REDACTED}],
        "n": 1,
    }
    assert Redactor([b"secret"]).json(b"no json: secret") == f"no json: {REDACTED}".encode()


def test_the_longer_of_two_values_wins() -> None:
    assert Redactor([b"secret", b"secret-and-more"]).text("secret-and-more secret") == f"{REDACTED} {REDACTED}"


async def _cut(whole: bytes, cuts: list[int]) -> AsyncGenerator[bytes, None]:
    for cut in cuts:
        yield whole[:cut]
        whole = whole[cut:]
    yield whole


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=4, max_size=20),
    st.lists(st.integers(1, 60), max_size=8),
)
async def test_values_are_found_however_the_stream_is_cut(value: str, cuts: list[int]) -> None:
    whole = f"before {value} between {value}\nlast {value}".encode()
    out = b"".join([piece async for piece in Redactor([value.encode()]).lines(_cut(whole, cuts))])
    assert value.encode() not in out or value in REDACTED
    assert out.count(b"\n") == 1


def test_what_a_runtime_says_is_heard_without_secrets() -> None:
    def seen(message: str) -> PodSeen:
        return PodSeen(
            "u", "ns", "p", (), (ContainerSeen("i", "s", "c", 0, ContainerState.EXITED, 0, message=message),)
        )

    def heard(word: str) -> list[object]:
        return [
            OpDone(1, "RunContainerError", f"can't run {word}", seen=seen(f"no {word}"), detail=f"hook: {word}"),
            ProbeDone(2, "failure", f"{word} is not found"),
            seen(f"exec {word}"),
        ]

    values = [b"s3cr3t"]
    assert [without_secrets(event, lambda: values) for event in heard("s3cr3t")] == heard(REDACTED)  # type: ignore[arg-type]


def test_ids_and_what_says_nothing_are_heard_as_they_are() -> None:
    for event in (OpDone(1, detail="sha256:s3cr3t"), PodSeen("s3cr3t", "ns", "p"), RuntimeDown("s3cr3t")):
        assert without_secrets(event, lambda: [b"s3cr3t"]) == event
