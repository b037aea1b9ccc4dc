"""Folders of manifests: what is delivered, when, and what is refused."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tinyedge import limits
from tinyedge.adapters import linux, manifests
from tinyedge.adapters.manifests import ManifestFolder, line_of
from tinyedge.events import FileSeen, FolderSeen
from tinyedge.model import decode

GOOD = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  a: b\n"
BAD = "apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: x}\n  data: {k: 1}\n"
CONFIG = "{apiVersion: v1, kind: ConfigMap, "
JSON = '{"apiVersion": "v1", "kind": "ConfigMap",\n "metadata": {"name": "NAME"}}'


class Folder:
    """A folder of manifests and what was delivered of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.delivered: list[FolderSeen] = []
        self.parsed: list[int] = []  # files in each call of the child

    def write(self, name: str, text: str | bytes) -> Path:
        data = text.encode() if isinstance(text, str) else text
        (self.path / name).write_bytes(data)
        (self.path / name).chmod(0o644)
        return self.path / name

    def good(self, *names: str) -> None:
        for name in names:
            self.write(name, GOOD.format(name=name.partition(".")[0]))

    def reader(self, known: Mapping[str, str] | None = None, parser: list[str] | None = None) -> ManifestFolder:
        async def deliver(seen: FolderSeen) -> None:
            self.delivered.append(seen)

        reader = ManifestFolder(str(self.path), deliver, decode.read, known=known, parser=parser)
        child = reader._child

        async def counted(contents: Any) -> Any:
            self.parsed.append(len(contents))
            return await child(contents)

        reader._child = counted  # type: ignore[method-assign]
        return reader

    def files(self) -> dict[str, FileSeen]:
        return {file.path: file for file in self.delivered[-1].files}

    def names(self) -> dict[str, list[str] | None]:
        return {
            path: None if file.objects is None else [each.metadata.name for each in file.objects]
            for path, file in self.files().items()
        }


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    path = tmp_path / "manifests"
    path.mkdir(mode=0o755)
    return Folder(path)


# --- one look -------------------------------------------------------------------------------------


async def test_yaml_and_json_with_several_documents_and_lists_become_objects(folder: Folder) -> None:
    folder.write("a.yaml", GOOD.format(name="one") + "---\n" + GOOD.format(name="two"))
    folder.write(
        "b.yml", f"kind: List\nitems:\n- {CONFIG}metadata: {{name: three}}}}\n- {CONFIG}metadata: {{name: four}}}}\n"
    )
    folder.write("c.json", JSON.replace("NAME", "five"))
    await folder.reader().look()
    assert folder.names() == {"a.yaml": ["one", "two"], "b.yml": ["three", "four"], "c.json": ["five"]}
    assert folder.delivered[-1].problem == ""
    assert folder.parsed == [2]


async def test_json_alone_needs_no_child(folder: Folder) -> None:
    folder.write("c.json", JSON.replace("NAME", "five"))
    await folder.reader().look()
    assert folder.parsed == []


async def test_what_an_editor_leaves_is_not_looked_at(folder: Folder) -> None:
    for name in (".a.yaml", "a.yaml~", "#a.yaml#", ".#a.yaml", ".a.yaml.swp", "4913", "README", "a.yaml.bak"):
        folder.write(name, "metadata: {name: x}")
    (folder.path / "sub.d").mkdir()
    await folder.reader().look()
    assert folder.files() == {}


async def test_a_look_that_finds_nothing_new_delivers_nothing_and_parses_nothing(folder: Folder) -> None:
    folder.good("a.yaml", "b.yaml")
    reader = folder.reader()
    await reader.look()
    await reader.look()
    assert len(folder.delivered) == 1
    assert folder.parsed == [2]


async def test_only_what_changed_is_parsed_and_the_rest_has_no_objects(folder: Folder) -> None:
    folder.good("a.yaml", "b.yaml")
    reader = folder.reader()
    await reader.look()
    folder.write("b.yaml", GOOD.format(name="other"))
    await reader.look()
    assert folder.names() == {"a.yaml": None, "b.yaml": ["other"]}
    assert folder.parsed == [2, 1]


async def test_a_file_that_was_only_touched_is_read_but_not_parsed(folder: Folder) -> None:
    folder.good("a.yaml")
    reader = folder.reader()
    await reader.look()
    os.utime(folder.path / "a.yaml", ns=(1, 1))
    await reader.look()
    assert len(folder.delivered) == 1
    assert folder.parsed == [1]


async def test_after_a_boot_a_known_digest_is_enough(folder: Folder) -> None:
    folder.good("a.yaml", "b.yaml")
    await folder.reader().look()
    known = {path: file.digest for path, file in folder.files().items()}
    folder.write("b.yaml", GOOD.format(name="changed-while-down"))
    await folder.reader(known).look()
    assert folder.names() == {"a.yaml": None, "b.yaml": ["changed-while-down"]}


async def test_a_deleted_file_is_gone_and_comes_back_whole(folder: Folder) -> None:
    folder.good("a.yaml", "b.yaml")
    reader = folder.reader()
    await reader.look()
    (folder.path / "a.yaml").unlink()
    await reader.look()
    assert folder.names() == {"b.yaml": None}
    folder.good("a.yaml")
    await reader.look()
    assert folder.names() == {"a.yaml": ["a"], "b.yaml": None}


# --- what can't be used ---------------------------------------------------------------------------


async def test_a_bad_field_is_told_with_file_line_and_path_and_the_file_has_no_objects(folder: Folder) -> None:
    folder.write("a.yaml", GOOD.format(name="fine") + "---\n" + GOOD.format(name="x") + "  my.key: 7\n")
    await folder.reader().look()
    (problem,) = folder.files()["a.yaml"].problems
    assert folder.files()["a.yaml"].objects is None
    assert (problem.file, problem.line, problem.field) == ("a.yaml", 14, "data.my.key")
    assert problem.message.startswith("data.my.key is 7: expected ")


async def test_every_bad_document_of_a_file_is_told(folder: Folder) -> None:
    folder.write(
        "a.yaml", f"kind: List\nitems:\n- {CONFIG}metadata: {{}}}}\n- {CONFIG}metadata: {{name: x}}}}\n- {BAD}"
    )
    await folder.reader().look()
    assert [(p.line, p.field) for p in folder.files()["a.yaml"].problems] == [
        (3, "items[0].metadata.name"),
        (8, "items[2].data.k"),
    ]


async def test_a_bad_field_in_json_has_its_line_too(folder: Folder) -> None:
    folder.write("a.json", JSON[:-1] + ',\n "data": {\n  "k": 1\n }\n}\n')
    folder.write("b.json", '{\n "metadata": \n x}')
    folder.write("c.json", "[]")
    await folder.reader().look()
    assert [(p.line, p.field) for p in folder.files()["a.json"].problems] == [(4, "data.k")]
    assert [p.line for p in folder.files()["b.json"].problems] == [3]
    assert [p.message for p in folder.files()["c.json"].problems] == ["a document must be a mapping"]


async def test_the_value_of_a_secret_is_not_told(folder: Folder) -> None:
    folder.write("a.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ndata:\n  pin: 31415926\n")
    await folder.reader().look()
    assert "31415926" not in repr(folder.delivered)
    assert folder.files()["a.yaml"].problems[0].line == 5


async def test_a_problem_stays_told_without_parsing_again_and_goes_with_its_cause(folder: Folder) -> None:
    folder.write("a.yaml", "metadata: [\n")
    folder.good("b.yaml")
    reader = folder.reader()
    await reader.look()
    folder.write("b.yaml", GOOD.format(name="other"))
    await reader.look()
    assert len(folder.files()["a.yaml"].problems) == 1
    assert folder.parsed == [2, 1]
    folder.good("a.yaml")
    await reader.look()
    assert folder.files()["a.yaml"].problems == ()
    assert folder.names()["a.yaml"] == ["a"]


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\n\n"], ids=["no bytes", "zeros", "blank"])
async def test_an_empty_file_is_a_problem_and_not_a_deletion(folder: Folder, content: bytes) -> None:
    folder.write("a.yaml", content)
    await folder.reader().look()
    assert folder.files()["a.yaml"].objects is None
    assert "is empty" in folder.files()["a.yaml"].problems[0].message


async def test_a_file_of_comments_holds_nothing(folder: Folder) -> None:
    folder.write("a.yaml", "# later\n")
    await folder.reader().look()
    assert folder.names() == {"a.yaml": []}


async def test_a_file_that_is_too_large_is_refused_unread(folder: Folder) -> None:
    folder.write("a.yaml", b"a")
    os.truncate(folder.path / "a.yaml", limits.MANIFEST_FILE_BYTES_MAX + 1)
    await folder.reader().look()
    assert "bytes; " in folder.files()["a.yaml"].problems[0].message


async def test_too_many_files_are_a_problem_of_the_folder(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MANIFEST_FILES_MAX", 1)
    folder.good("a.yaml", "b.yaml")
    await folder.reader().look()
    assert "holds more than 1 manifests;" in folder.delivered[-1].problem
    assert folder.delivered[-1].files == ()


async def test_a_file_that_kills_its_child_harms_no_other_and_is_tried_again(folder: Folder) -> None:
    folder.good("a.yaml", "b.yaml")
    folder.write("killer.yaml", "die: now")
    script = (
        "import sys, tinyedge.adapters.manifest_child as child\n"
        "parse = child.parse\n"
        "child.parse = lambda data: sys.exit(1) if data == b'die: now' else parse(data)\n"
        "child._serve(sys.stdin.buffer, sys.stdout.buffer)\n"
    )
    reader = folder.reader(parser=[sys.executable, "-c", script])
    await reader.look()
    assert folder.names() == {"a.yaml": ["a"], "b.yaml": ["b"], "killer.yaml": None}
    assert "within the limits" in folder.files()["killer.yaml"].problems[0].message
    assert folder.parsed == [3, 1, 1, 1]
    await reader.look()
    assert folder.parsed == [3, 1, 1, 1, 1]


async def test_a_parser_that_can_not_be_started_is_told(folder: Folder) -> None:
    folder.good("a.yaml")
    await folder.reader(parser=["/nonexistent/parser"]).look()
    assert "can't be parsed" in folder.files()["a.yaml"].problems[0].message


async def test_batches_hold_a_bounded_number_of_bytes(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MANIFEST_BATCH_BYTES", 100)
    folder.good("a.yaml", "b.yaml", "c.yaml")
    await folder.reader().look()
    assert folder.parsed == [2, 1]
    assert folder.names() == {"a.yaml": ["a"], "b.yaml": ["b"], "c.yaml": ["c"]}


# --- whose files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o664, 0o646])
async def test_a_file_that_others_may_write_is_refused(folder: Folder, mode: int) -> None:
    folder.good("a.yaml")
    (folder.path / "a.yaml").chmod(mode)
    await folder.reader().look()
    assert folder.files()["a.yaml"].objects is None
    assert "may be written by others" in folder.files()["a.yaml"].problems[0].message


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
async def test_a_folder_that_others_may_write_is_refused_whole(folder: Folder, mode: int) -> None:
    folder.good("a.yaml")
    folder.path.chmod(mode)
    await folder.reader().look()
    assert folder.delivered[-1].files == ()
    assert "may be written by others" in folder.delivered[-1].problem


@pytest.mark.root
async def test_what_belongs_to_somebody_else_is_refused(folder: Folder) -> None:
    folder.good("a.yaml")
    os.chown(folder.path / "a.yaml", 1234, 0)
    await folder.reader().look()
    assert "belongs to user 1234" in folder.files()["a.yaml"].problems[0].message
    os.chown(folder.path, 1234, 0)
    await folder.reader().look()
    assert "belongs to user 1234" in folder.delivered[-1].problem


async def test_mending_the_mode_mends_the_file(folder: Folder) -> None:
    folder.good("a.yaml")
    (folder.path / "a.yaml").chmod(0o666)
    reader = folder.reader()
    await reader.look()
    (folder.path / "a.yaml").chmod(0o644)
    await reader.look()
    assert folder.names() == {"a.yaml": ["a"]}


async def test_a_missing_folder_is_a_problem_and_what_was_known_is_kept(folder: Folder) -> None:
    folder.good("a.yaml")
    reader = folder.reader()
    await reader.look()
    folder.path.rename(folder.path.parent / "away")
    await reader.look()
    assert folder.delivered[-1].problem.endswith(": No such file or directory; what it declared goes on as it is")
    (folder.path.parent / "away").rename(folder.path)
    await reader.look()
    assert folder.names() == {"a.yaml": None}
    assert len(folder.delivered) == 3


async def test_another_folder_at_the_same_path_has_another_identity(folder: Folder) -> None:
    reader = folder.reader()
    await reader.look()
    folder.path.rename(folder.path.parent / "away")
    folder.path.mkdir(mode=0o755)
    await reader.look()
    first, second = folder.delivered
    assert first.identity
    assert first.identity != second.identity


# --- symlinks -------------------------------------------------------------------------------------


async def test_a_mounted_configmap_is_read_through_its_symlinks(folder: Folder) -> None:
    version = folder.path / "..2026_01"
    version.mkdir(mode=0o755)
    (version / "a.yaml").write_text(GOOD.format(name="a"))
    (version / "a.yaml").chmod(0o644)
    (folder.path / "..data").symlink_to("..2026_01")
    (folder.path / "a.yaml").symlink_to("..data/a.yaml")
    await folder.reader().look()
    assert folder.names() == {"a.yaml": ["a"]}
    version.chmod(0o777)
    await folder.reader().look()
    assert "may be written by others" in folder.files()["a.yaml"].problems[0].message


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside.yaml", "nowhere.yaml", "a.yaml"])
async def test_a_symlink_out_of_the_folder_or_to_nothing_is_a_problem(folder: Folder, target: str) -> None:
    (folder.path.parent / "outside.yaml").write_text(GOOD.format(name="outside"))
    (folder.path / "a.yaml").symlink_to(target)
    await folder.reader().look()
    assert folder.files()["a.yaml"].objects is None
    assert len(folder.files()["a.yaml"].problems) == 1


async def test_a_pipe_is_not_waited_for(folder: Folder) -> None:
    os.mkfifo(folder.path / "a.yaml", 0o600)
    await folder.reader().look()
    assert folder.files()["a.yaml"].problems[0].message == "is not a plain file"


# --- changes --------------------------------------------------------------------------------------


@asynccontextmanager
async def watched(folder: Folder, quiet_s: float = 0.01, rescan_s: float = 3600) -> AsyncIterator[Callable[[], Any]]:
    """Yields a function that waits for the next delivery."""
    send, receive = trio.open_memory_channel[FolderSeen](100)

    async def deliver(seen: FolderSeen) -> None:
        folder.delivered.append(seen)
        await send.send(seen)

    async def following() -> FolderSeen:
        with trio.fail_after(60):
            return await receive.receive()

    reader = ManifestFolder(str(folder.path), deliver, decode.read, quiet_s=quiet_s, rescan_s=rescan_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.run)
        yield following
        nursery.cancel_scope.cancel()


async def test_changes_are_delivered_as_they_happen(folder: Folder) -> None:
    folder.good("a.yaml")
    async with watched(folder) as following:
        await following()
        assert folder.names() == {"a.yaml": ["a"]}
        folder.good("b.yaml")
        while "b.yaml" not in folder.names():
            await following()
        (folder.path / "a.yaml").unlink()
        while "a.yaml" in folder.names():
            await following()


async def test_without_inotify_changes_are_found_by_looking(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs of the same user can take all of its inotify descriptors."""

    def none_left(flags: int) -> int:
        ctypes.set_errno(errno.EMFILE)
        return -1

    monkeypatch.setattr(linux._libc, "inotify_init1", none_left)
    async with watched(folder, rescan_s=0.01) as following:
        await following()
        folder.good("a.yaml")
        while "a.yaml" not in folder.names():
            await following()


async def test_a_rename_over_a_file_is_seen(folder: Folder) -> None:
    """As editors and configuration management do it."""
    folder.good("a.yaml")
    async with watched(folder) as following:
        await following()
        folder.write(".a.yaml.new", GOOD.format(name="new"))
        (folder.path / ".a.yaml.new").rename(folder.path / "a.yaml")
        await following()
        assert folder.names() == {"a.yaml": ["new"]}


async def test_a_change_that_leaves_size_and_times_alone_is_seen(folder: Folder) -> None:
    folder.write("a.json", JSON.replace("NAME", "old"))
    os.utime(folder.path / "a.json", ns=(5, 5))
    async with watched(folder) as following:
        await following()
        with open(folder.path / "a.json", "r+b") as file:
            file.write(JSON.replace("NAME", "new").encode())
        os.utime(folder.path / "a.json", ns=(5, 5))
        while folder.names() != {"a.json": ["new"]}:
            await following()


async def test_a_notice_from_the_kernel_counts_more_than_times_that_are_the_same(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may keep times too coarsely to tell two writes apart."""
    monkeypatch.setattr(manifests, "_look", lambda *_: manifests._Signature(1, 2, 3, 4, 5))
    folder.good("a.yaml")
    async with watched(folder) as following:
        await following()
        folder.write("a.yaml", GOOD.format(name="new"))
        await following()
        assert folder.names() == {"a.yaml": ["new"]}


async def test_the_swap_of_a_mounted_configmap_is_seen(folder: Folder) -> None:
    for version in ("1", "2"):
        (folder.path / f"..{version}").mkdir(mode=0o755)
        folder.write(f"..{version}/a.yaml", GOOD.format(name=f"v{version}"))
    (folder.path / "..data").symlink_to("..1")
    (folder.path / "a.yaml").symlink_to("..data/a.yaml")
    async with watched(folder) as following:
        await following()
        (folder.path / "..new").symlink_to("..2")
        (folder.path / "..new").rename(folder.path / "..data")
        while folder.names() != {"a.yaml": ["v2"]}:
            await following()


async def test_a_folder_that_appears_later_is_seen_also_when_its_parents_are_missing(folder: Folder) -> None:
    folder.path = folder.path / "not" / "yet"
    async with watched(folder) as following:
        assert (await following()).problem
        (folder.path.parent).mkdir(mode=0o755)
        (folder.path).mkdir(mode=0o755)
        folder.good("a.yaml")
        while folder.delivered[-1].problem or folder.names() != {"a.yaml": ["a"]}:
            await following()


async def test_a_folder_that_is_replaced_is_followed(folder: Folder) -> None:
    async with watched(folder) as following:
        await following()
        folder.path.rename(folder.path.parent / "away")
        folder.path.mkdir(mode=0o755)
        folder.good("a.yaml")
        while folder.delivered[-1].problem or "a.yaml" not in folder.names():
            await following()
        folder.good("b.yaml")
        while "b.yaml" not in folder.names():
            await following()


async def test_a_change_while_a_look_is_under_way_is_not_missed(folder: Folder) -> None:
    folder.good("a.yaml")
    real = manifests._list

    def slow(path: str) -> Any:
        found = real(path)
        if not (folder.path / "b.yaml").exists():
            folder.good("b.yaml")  # just after the look at it
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "_list", slow)
        async with watched(folder) as following:
            while "b.yaml" not in (folder.names() if folder.delivered else {}):
                await following()


async def test_no_descriptor_is_left_open(folder: Folder) -> None:
    before = len(os.listdir("/proc/self/fd"))
    folder.good("a.yaml")
    folder.write("b.yaml", "")
    (folder.path / "c.yaml").symlink_to("/etc/hostname")
    async with watched(folder) as following:
        await following()
    assert len(os.listdir("/proc/self/fd")) == before


# --- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("", 1),
        ("a", 2),
        ("a.b", 3),
        ("a.b.c", 4),
        ("a.b.missing", 3),
        ("list[0]", 6),
        ("list[1].x", 8),
        ("list[1].y.z", 7),
        ("list[9]", 5),
        ("unknown", 1),
        ("a.b.c.deeper[3]", 4),
        ("abc", 9),
    ],
)
def test_a_field_has_the_line_of_what_is_nearest_to_it(field: str, line: int) -> None:
    value = {"a": {"b.c": 0, "b": {"c": 1}}, "list": [5, {"x": 1}], "abc": 1}
    lines = [1, 2, 99, 3, 4, 5, 6, 7, 8, 9]
    assert line_of({"a": {"b": {"c": 1}}, "list": [5, {"x": 1}], "abc": 1}, [1, 2, 3, 4, 5, 6, 7, 8, 9], field) == line
    assert line_of(value, lines, "a.b.c") == 99  # the longest key that fits
    assert line_of(value, [], "a") == 0


def test_a_depth_that_the_decoder_takes_can_not_break_the_search_for_a_line() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert line_of({"status": deep, "x": 1}, [], "x") == 0
