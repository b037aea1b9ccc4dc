"""YAML as Kubernetes means it, and what hostile YAML can't do."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyedge import limits
from tinyedge.adapters import manifest_child
from tinyedge.adapters.manifest_child import parse


def value(text: str) -> object:
    parsed = parse(text.encode())
    assert not parsed.problem
    return parsed.documents[0].value


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("x: yes", True),
        ("x: Off", False),
        ("x: y", "y"),
        ("x: ~", None),
        ("x:", None),
        ("x: 0644", 0o644),
        ("x: 0o644", 0o644),
        ("x: 0x1F", 31),
        ("x: 0b11", 3),
        ("x: 1_000", 1000),
        ("x: -7", -7),
        ("x: 08", "08"),
        ("x: 007.5", "007.5"),
        ("x: 1.5", 1.5),
        ("x: 1e3", 1000.0),
        ("x: 22:22", "22:22"),
        ("x: 2001-12-14", "2001-12-14"),
        ("x: 2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("x: '12'", "12"),
        ("x: !!str 12", "12"),
        ("x: !!int '12'", 12),
        ("x: 99999999999999999999999", "99999999999999999999999"),
        ("x: 1.2.3", "1.2.3"),
        ("x: 0x_", "0x_"),
        ("x: |\n  a\n  b\n", "a\nb\n"),
        ("x: 100m", "100m"),
        ("x: <<", "<<"),
    ],
)
def test_a_scalar_means_what_it_means_to_kubernetes(written: str, meant: object) -> None:
    got = value(written)
    assert got == {"x": meant}
    assert isinstance(got, dict)
    assert type(got["x"]) is type(meant)


def test_keys_become_text() -> None:
    assert value("1: a\ntrue: b\n1.5: c\n") == {"1": "a", "true": "b", "1.5": "c"}


def test_aliases_and_merges_are_written_out() -> None:
    text = "base: &b {a: 1, c: {d: 2}}\nlist: [*b, *b]\nmerged:\n  a: 9\n  <<: *b\nother:\n  <<: [*b, {e: 3}]\n  c: 4\n"
    assert value(text) == {
        "base": {"a": 1, "c": {"d": 2}},
        "list": [{"a": 1, "c": {"d": 2}}] * 2,
        "merged": {"a": 9, "c": {"d": 2}},
        "other": {"a": 1, "c": 4, "e": 3},
    }


def test_each_value_has_its_line() -> None:
    parsed = parse(b"# hello\na: 1\nb:\n  - x: 2\n    y:\n      z: 3\n  - 4\n---\n\nc: 5\n")
    assert parsed.documents[0].lines == [2, 2, 3, 4, 4, 5, 6, 7]
    assert parsed.documents[1].lines == [10, 10]


def test_empty_documents_are_none() -> None:
    assert [document.value for document in parse(b"---\n# nothing\n---\na: 1\n---\n").documents] == [{"a": 1}]
    assert parse(b"# only words\n") == manifest_child.Parsed()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", 2, "tab|token"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", 4, "the key c occurs twice"),
        ("a: !!python/object:os.system x\n", 1, "not supported"),
        ("a: 1\nb: !mine {c: 1}\n", 2, "tag !mine"),
        ("a: !!binary aGk=\n", 1, "not supported"),
        ("a: .nan\n", 1, "no meaning"),
        ("a: *nothing\n", 1, "undefined alias|refers to nothing"),
        ("a: &a [*a]\n", 1, "undefined alias|refers to nothing"),
        ("- a\n- b\n", 1, "must be a mapping"),
        ("just words\n", 1, "must be a mapping"),
        ("? [a, b]\n: 1\n", 1, "a key must be text"),
        ("~: 1\n", 1, "a key must be text"),
        ("a: {<<: 1}\n", 1, "takes a mapping"),
    ],
)
def test_what_can_not_be_used_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    parsed = parse(text.encode())
    assert not parsed.documents
    assert any(word in parsed.problem for word in words.split("|")), parsed.problem
    assert parsed.line == line


def test_bytes_that_are_no_text_are_refused() -> None:
    for data in (b"a: \xff\xfe", b"\x00\x01", b"a: \x07"):
        assert parse(data).problem


def test_an_alias_bomb_is_refused() -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 12))
    parsed = parse(f"l0: &l0 [x]\n{levels}".encode())
    assert "aliases" in parsed.problem


def test_an_alias_bomb_of_long_text_is_refused() -> None:
    text = f"a: &a '{'x' * 100_000}'\nb: [{', '.join(['*a'] * 1000)}]\n"
    assert "aliases" in parse(text.encode()).problem


def test_nesting_is_limited_whether_written_or_by_alias() -> None:
    depth = limits.MANIFEST_DEPTH_MAX + 2
    assert "levels deep" in parse(b"a: " + b"[" * depth + b"]" * depth).problem
    chain = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, depth))
    assert "levels deep" in parse(chain.encode()).problem


def test_documents_and_values_are_counted() -> None:
    assert "documents" in parse(b"---\na: 1\n" * (limits.MANIFEST_DOCUMENTS_MAX + 1)).problem
    assert "values" in parse(b"a:\n" + b"- 1\n" * limits.MANIFEST_NODES_MAX).problem


def test_frames_are_answered_one_for_one_in_order() -> None:
    contents = [b"a: 1", b"", b"a: [", b"b: 2\n---\nc: 3"]
    source = io.BytesIO(b"".join(struct.pack(">I", len(content)) + content for content in contents))
    sink = io.BytesIO()
    manifest_child._serve(source, sink)
    answers = []
    data = sink.getvalue()
    while data:
        length = struct.unpack(">I", data[:4])[0]
        answers.append(msgspec.json.decode(data[4 : 4 + length], type=manifest_child.Parsed))
        data = data[4 + length :]
    assert [len(answer.documents) for answer in answers] == [1, 0, 0, 2]
    assert [bool(answer.problem) for answer in answers] == [False, False, True, False]


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(exclude_categories=["C", "Z"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text("xyz", min_size=1), plain, max_size=4))
@settings(max_examples=150, deadline=None)
def test_whatever_json_holds_comes_back_from_yaml(content: dict[str, object]) -> None:
    parsed = parse(yaml.safe_dump(content).encode())
    assert parsed.documents[0].value == content


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_break_the_parser(data: bytes) -> None:
    parse(data)


LESS = """
import os
from tinyedge.adapters import manifest_child
manifest_child.drop_privileges({user!r})
print(os.getresuid(), os.getresgid(), os.getgroups(), os.access("/etc/shadow", os.R_OK))
try:
    os.setresuid(0, 0, 0)
except PermissionError:
    print("stays")
"""


@pytest.mark.root
def test_as_root_it_becomes_the_user_that_owns_nothing_and_never_comes_back() -> None:
    argv = [sys.executable, "-c", LESS.format(user="nobody")]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert said == "(65534, 65534, 65534) (65534, 65534, 65534) [] False\nstays\n"


@pytest.mark.root
def test_where_no_such_user_was_made_it_parses_as_who_it_is() -> None:
    argv = [sys.executable, "-c", LESS.format(user="_nobody-made-this")]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert said.startswith("(0, 0, 0)")
