"""The parser of strace's output, on lines and on real little programs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import model, record
from tests.crash.model import ROOT, Link, Note, Rename, Resize, Sync, Unlink, Write

traced = pytest.mark.skipif(bool(record.missing()), reason=record.missing() or "strace works here")


def hexed(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def build(root: Path, *lines: str) -> record.Builder:
    builder = record.Builder(root)
    builder.feed(lines)
    return builder


def opened(path: Path, fd: int, flags: str = "O_RDWR|O_CREAT", pid: int = 7) -> str:
    return f'{pid} openat(AT_FDCWD, "{hexed(str(path))}", {flags}, 0600) = {fd}'


def test_calls_below_the_root_become_ops_and_others_are_left_out(tmp_path: Path) -> None:
    lines = [
        opened(tmp_path / "a", 3),
        opened(tmp_path.parent / "elsewhere", 4),
        f'7 pwrite64(3, "{hexed("data")}", 4, 100) = 4',
        f'7 pwrite64(4, "{hexed("data")}", 4, 100) = 4',
        "7 fdatasync(3) = 0",
        "7 fdatasync(4) = 0",
        f'7 rename("{hexed(str(tmp_path / "a"))}", "{hexed(str(tmp_path / "b"))}") = 0',
        f'7 unlink("{hexed(str(tmp_path / "b"))}") = 0',
    ]
    assert build(tmp_path, *lines).ops == [
        Link(ROOT, "a", 1),
        Write(1, 100, b"data"),
        Sync(1),
        Rename(ROOT, "a", ROOT, "b"),
        Unlink(ROOT, "b"),
    ]


def test_a_call_that_another_thread_interrupts_begins_where_it_began_and_ends_where_it_ended(tmp_path: Path) -> None:
    builder = build(
        tmp_path,
        opened(tmp_path / "a", 3),
        "7 fdatasync(3 <unfinished ...>",
        f'8 pwrite64(3, "{hexed("x")}", 1, 0) = 1',
        "7 <... fdatasync resumed>) = 0",
    )
    assert builder.ops == [Link(ROOT, "a", 1), Sync(1), Write(1, 0, b"x")]
    assert builder.timeline == [0, ~0, 1, 2, ~2, ~1]


def test_a_plain_write_goes_where_the_descriptor_stands(tmp_path: Path) -> None:
    builder = build(
        tmp_path,
        opened(tmp_path / "a", 3),
        f'7 write(3, "{hexed("abcd")}", 4) = 2',
        f'7 write(3, "{hexed("xy")}", 2) = 2',
        "7 lseek(3, 100, SEEK_SET) = 100",
        f'7 writev(3, [{{iov_base="{hexed("p")}", iov_len=1}}, {{iov_base="{hexed("q")}", iov_len=1}}], 2) = 2',
    )
    assert builder.ops[1:] == [Write(1, 0, b"ab"), Write(1, 2, b"xy"), Write(1, 100, b"pq")]


def test_what_is_copied_within_the_kernel_is_what_stands_at_the_source(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    lines = [
        opened(tmp_path / "a", 3, "O_RDONLY"),
        opened(tmp_path / "b", 4),
        "7 copy_file_range(3, NULL, 4, NULL, 9223372035781033984, 0) = 4",
        "7 copy_file_range(3, NULL, 4, NULL, 9223372035781033984, 0) = 2",
        "7 copy_file_range(3, NULL, 4, NULL, 9223372035781033984, 0) = 0",
    ]
    assert build(tmp_path, *lines).ops[1:] == [Write(2, 0, b"abcd"), Write(2, 4, b"ef")]
    with pytest.raises(record.RecordError, match="not modelled"):
        build(tmp_path, *lines[1:3])


def test_o_trunc_resizes_only_what_is_there_and_not_empty(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").write_bytes(b"")
    flags = "O_WRONLY|O_CREAT|O_TRUNC"
    builder = build(tmp_path, opened(tmp_path / "a", 3, flags), opened(tmp_path / "b", 4, flags))
    assert builder.ops == [Resize(1, 0)]


def test_o_dsync_marks_every_write_of_that_descriptor(tmp_path: Path) -> None:
    builder = build(
        tmp_path, opened(tmp_path / "a", 3, "O_WRONLY|O_CREAT|O_DSYNC"), f'7 pwrite64(3, "{hexed("x")}", 1, 0) = 1'
    )
    assert builder.ops[-1] == Write(1, 0, b"x", durable=True)


def test_a_failed_call_changes_nothing_but_a_flush_that_failed_counts(tmp_path: Path) -> None:
    builder = build(
        tmp_path,
        opened(tmp_path / "a", 3),
        f'7 mkdir("{hexed(str(tmp_path / "d"))}", 0700) = -1 EEXIST (File exists)',
        "7 fdatasync(3) = -1 EIO (Input/output error)",
    )
    assert builder.ops == [Link(ROOT, "a", 1), Sync(1, ok=False)]


def test_a_forked_child_closes_its_own_descriptors_and_a_thread_shares_them(tmp_path: Path) -> None:
    builder = build(
        tmp_path,
        opened(tmp_path / "a", 3),
        "7 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD <unfinished ...>",
        "8 close(3) = 0",
        "7 <... clone resumed>, child_tidptr=0x7f) = 8",
        "7 clone3({flags=CLONE_VM|CLONE_FILES|CLONE_THREAD}, 88) = 9",
        "9 fsync(3) = 0",
        "9 close(3) = 0",
        "7 fsync(3) = 0",
    )
    assert builder.ops == [Link(ROOT, "a", 1), Sync(1)]


def test_notes_and_foretold_faults_are_heard(tmp_path: Path) -> None:
    builder = build(
        tmp_path,
        opened(tmp_path / "a", 3),
        '7 openat(AT_FDCWD, "' + hexed("/dev/null") + '", O_WRONLY) = 4',
        f'7 write(4, "{hexed("crash-note:hello")}", 16) = 16',
        f'7 write(4, "{hexed("crash-fault:3")}", 13) = 13',
        f'7 write(4, "{hexed("noise")}", 5) = 5',
    )
    assert builder.ops == [Link(ROOT, "a", 1), Note(b"hello"), Sync(1, ok=False)]


def test_a_write_through_a_mapping_is_refused_except_for_lock_files(tmp_path: Path) -> None:
    mapping = "7 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_SHARED, 3, 0) = 0x7f0000000000"
    assert build(tmp_path, opened(tmp_path / "lock.mdb", 3), mapping).ops == [Link(ROOT, "lock.mdb", 1, "lock")]
    with pytest.raises(record.RecordError, match="mapping"):
        build(tmp_path, opened(tmp_path / "data", 3), mapping)


def test_data_that_strace_cut_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(record.RecordError, match="cut short"):
        build(tmp_path, opened(tmp_path / "a", 3), f'7 pwrite64(3, "{hexed("x")}"..., 9, 0) = 9')


def test_what_the_trace_missed_is_found_at_the_end(tmp_path: Path) -> None:
    builder = build(tmp_path, opened(tmp_path / "a", 3))
    (tmp_path / "a").write_bytes(b"untraced")
    with pytest.raises(record.RecordError, match="misses something"):
        builder.verify()


@traced
def test_a_real_program_is_recorded_to_the_last_byte(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "kept").mkdir(parents=True)
    (root / "kept" / "old").write_bytes(b"old")
    program = f"""
import os, threading
os.chdir({str(root)!r})
d = os.open(".", os.O_RDONLY)
f = os.open("new", os.O_RDWR | os.O_CREAT, dir_fd=d)
t = threading.Thread(target=lambda: (os.pwrite(f, b"x" * 70000, 5), os.fsync(f)))
t.start(); t.join()
g = os.dup(f); os.close(f); os.pwrite(g, b"y", 0); os.ftruncate(g, 60000)
with open("plain", "wb") as p: p.write(b"1" * 10000); p.write(b"2")
with open("plain", "ab") as p: p.write(b"3")
os.mkdir("made", dir_fd=d); os.rename("kept/old", "made/new", src_dir_fd=d, dst_dir_fd=d)
os.symlink("made", "current.new"); os.rename("current.new", "current"); os.link("plain", "made/hard")
os.rmdir("kept"); os.fsync(d)
if os.fork() == 0:
    os.close(g); os._exit(0)
os.wait(); os.pwrite(g, b"z", 1)
"""
    builder = record.Builder(root)
    record.run([sys.executable, "-c", program], tmp_path / "log", cwd=tmp_path)
    with (tmp_path / "log").open() as lines:
        builder.feed(lines, cwd=str(tmp_path))
    builder.verify()
    assert {type(op) for op in builder.ops} >= {model.Rename, model.Sync, model.Write, model.Resize, model.Unlink}
    assert (root / "new").read_bytes()[:2] == b"yz"


@traced
def test_a_program_that_fails_is_reported_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(record.RecordError, match="no such luck"):
        record.run([sys.executable, "-c", "raise SystemExit('no such luck')"], tmp_path / "log", cwd=tmp_path)


@traced
def test_strace_reports_lines_that_the_parser_knows(tmp_path: Path) -> None:
    log = tmp_path / "log"
    record.run(["true"], log, cwd=tmp_path)
    assert list(record.parse(log.read_text().splitlines()))
    assert subprocess.run(["true"], check=False).returncode == 0
