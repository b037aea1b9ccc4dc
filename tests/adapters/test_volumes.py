"""Volumes: what pods find in them, and what pods that play tricks can't reach."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.cutting import cuts
from tinyedge.adapters import atomic_files, linux
from tinyedge.adapters.volumes import Volumes
from tinyedge.errors import WorldError
from tinyedge.model.runtime import EmptyDirPlan, FilesPlan, HostPathPlan, ProjectedFile, SubpathPlan

UID = "11111111-2222-5333-8444-555555555555"


@pytest.fixture
def pods_dir(tmp_path: Path) -> Iterator[Path]:
    """A folder of pods with a name that mountinfo has to escape; whatever a test leaves mounted below is detached."""
    folder = tmp_path / "pods here"
    folder.mkdir()
    yield folder
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        places = [line.split()[4].replace("\\040", " ") for line in table]
    for place in reversed(places):
        if place.startswith(f"{tmp_path}/"):
            linux.unmount(place)


def plain(pods_dir: Path) -> Volumes:
    return Volumes(str(pods_dir), mounts=False)


def mounting(pods_dir: Path) -> Volumes:
    return Volumes(str(pods_dir), mounts=True)


def place(pods_dir: Path, kind: str, name: str) -> Path:
    return pods_dir / UID / "volumes" / f"kubernetes.io~{kind}" / name


def empty_dir(pods_dir: Path, *, memory: bool = False, size: int = 0, group: int | None = None) -> EmptyDirPlan:
    return EmptyDirPlan("scratch", str(place(pods_dir, "empty-dir", "scratch")), memory, size, group)


def files(
    pods_dir: Path, content: dict[str, bytes], *, memory: bool = False, group: int | None = None, mode: int = 0o644
) -> FilesPlan:
    listed = tuple(ProjectedFile(path, data, mode) for path, data in content.items())
    return FilesPlan("settings", str(place(pods_dir, "configmap", "settings")), listed, memory, group)


def subpath(pods_dir: Path, volume: Path, path: str, *, create: bool = True, read_only: bool = False) -> SubpathPlan:
    target = pods_dir / UID / "volume-subpaths" / "v" / "main" / "0"
    return SubpathPlan(str(volume), path, str(target), read_only, create)


def seen(volume: Path) -> dict[str, bytes]:
    """What a pod reads, by the names that it uses."""
    return {
        str((Path(top) / name).relative_to(volume)): (Path(top) / name).read_bytes()
        for top, _, names in os.walk(volume, followlinks=True)
        for name in names
        if not os.path.relpath(top, volume).startswith("..")
    }


# --- emptyDir and hostPath ------------------------------------------------------------------------


async def test_an_empty_dir_is_open_to_every_user_and_keeps_what_is_in_it(pods_dir: Path) -> None:
    plan = empty_dir(pods_dir)
    assert await plain(pods_dir).mount(UID, [plan]) == ()
    assert stat.S_IMODE(os.stat(plan.path).st_mode) == 0o777
    (Path(plan.path) / "kept").write_text("x")
    os.chmod(plan.path, 0o700)  # the pod's own decision
    await plain(pods_dir).mount(UID, [plan])
    assert (Path(plan.path) / "kept").read_text() == "x"
    assert stat.S_IMODE(os.stat(plan.path).st_mode) == 0o700


@pytest.mark.root
async def test_fs_group_owns_an_empty_dir_and_what_is_made_in_it(pods_dir: Path) -> None:
    plan = empty_dir(pods_dir, group=4321)
    await plain(pods_dir).mount(UID, [plan])
    (Path(plan.path) / "new").write_text("x")
    assert stat.S_IMODE(os.stat(plan.path).st_mode) == 0o2777
    assert os.stat(Path(plan.path) / "new").st_gid == 4321


async def test_a_pod_whose_folder_can_not_be_made_is_told_with_a_remedy(
    pods_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, *more: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(os, "makedirs", full)
    with pytest.raises(WorldError, match="No space left on device") as raised:
        await Volumes(str(pods_dir)).mount("uid-1", ())
    assert raised.value.remedy == "free some disk space"


async def test_an_empty_dir_is_never_seen_half_made(pods_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = empty_dir(pods_dir)
    volumes = plain(pods_dir)
    cut_at = 0
    for _ in cuts(monkeypatch, lambda: volumes._mount_all(UID, [plan])):
        cut_at += 1
        assert not os.path.exists(plan.path) or stat.S_IMODE(os.stat(plan.path).st_mode) == 0o777
        shutil.rmtree(pods_dir / UID, ignore_errors=True)
    assert cut_at > 5
    assert os.listdir(os.path.dirname(plan.path)) == ["scratch"]


@pytest.mark.root
async def test_an_empty_dir_in_memory_is_a_tmpfs_of_its_size(pods_dir: Path) -> None:
    plan = empty_dir(pods_dir, memory=True, size=1 << 20, group=4321)
    await mounting(pods_dir).mount(UID, [plan])
    await mounting(pods_dir).mount(UID, [plan])
    assert os.path.ismount(plan.path)
    assert os.statvfs(plan.path).f_blocks * os.statvfs(plan.path).f_frsize == 1 << 20
    assert (os.stat(plan.path).st_gid, stat.S_IMODE(os.stat(plan.path).st_mode)) == (4321, 0o2777)
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        assert sum("scratch" in line for line in table) == 1
    await mounting(pods_dir).unmount(UID)
    assert os.listdir(pods_dir) == []


async def test_without_the_right_to_mount_memory_is_a_folder_and_that_is_said(pods_dir: Path) -> None:
    secret = files(pods_dir, {"key": b"secret"}, memory=True)
    notes = await plain(pods_dir).mount(UID, [empty_dir(pods_dir, memory=True), secret])
    assert [note.partition(":")[0] for note in notes] == [
        "volume scratch is on disk",
        "volume settings is on disk, readable by its owner alone",
    ]
    assert stat.S_IMODE(os.stat(secret.path).st_mode) == 0o700


@pytest.mark.parametrize(
    ("kind", "made"), [("DirectoryOrCreate", stat.S_ISDIR), ("FileOrCreate", stat.S_ISREG)], ids=["folder", "file"]
)
async def test_a_host_path_that_may_be_created_is_and_then_is_left_alone(
    pods_dir: Path, tmp_path: Path, kind: str, made: object
) -> None:
    path = tmp_path / "made"
    plan = HostPathPlan("host", str(path), kind)
    await plain(pods_dir).mount(UID, [plan])
    assert callable(made)
    assert made(path.stat().st_mode)
    inode = path.stat().st_ino
    await plain(pods_dir).mount(UID, [plan])
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("kind", ["Directory", "File", "Socket", "CharDevice", "BlockDevice", "DirectoryOrCreate"])
async def test_a_host_path_of_another_type_is_refused_by_name(pods_dir: Path, tmp_path: Path, kind: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(WorldError, match=rf"hostPath volume host \(type {kind}\): {fifo} is not a"):
        await plain(pods_dir).mount(UID, [HostPathPlan("host", str(fifo), kind)])


async def test_a_missing_host_path_is_refused_unless_its_type_is_empty(pods_dir: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    await plain(pods_dir).mount(UID, [HostPathPlan("host", missing, "")])
    with pytest.raises(WorldError, match="does not exist"):
        await plain(pods_dir).mount(UID, [HostPathPlan("host", missing, "Directory")])
    assert not os.path.exists(missing)


async def test_host_paths_of_the_right_type_are_taken(pods_dir: Path, tmp_path: Path) -> None:
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    (tmp_path / "f").touch()
    right = {"Directory": tmp_path, "File": tmp_path / "f", "Socket": tmp_path / "s", "CharDevice": Path("/dev/null")}
    await plain(pods_dir).mount(UID, [HostPathPlan("host", str(path), kind) for kind, path in right.items()])
    unix.close()


# --- files that the node writes -------------------------------------------------------------------


async def test_files_are_laid_out_as_the_kubelet_does_it(pods_dir: Path) -> None:
    plan = files(pods_dir, {"a.conf": b"1", "sub/b.conf": b"2"}, mode=0o640)
    await plain(pods_dir).mount(UID, [plan])
    volume = Path(plan.path)
    assert os.readlink(volume / "a.conf") == "..data/a.conf"
    assert os.readlink(volume / "sub") == "..data/sub"
    assert os.readlink(volume / "..data").startswith("..20")
    assert stat.S_IMODE((volume / "a.conf").stat().st_mode) == 0o640
    assert stat.S_IMODE((volume / "sub").stat().st_mode) == 0o755
    assert seen(volume) == {"a.conf": b"1", "sub/b.conf": b"2"}


async def test_a_change_swaps_all_files_and_removes_the_names_that_are_gone(pods_dir: Path) -> None:
    await plain(pods_dir).mount(UID, [files(pods_dir, {"a": b"1", "gone": b"1", "sub/x": b"1"})])
    before = os.readlink(place(pods_dir, "configmap", "settings") / "..data")
    await plain(pods_dir).mount(UID, [files(pods_dir, {"a": b"2", "new": b"2"})])
    volume = place(pods_dir, "configmap", "settings")
    assert seen(volume) == {"a": b"2", "new": b"2"}
    assert not (volume / before).exists()
    assert sorted(os.listdir(volume)) == sorted(["a", "new", "..data", os.readlink(volume / "..data")])


async def test_a_file_may_become_a_folder_and_a_folder_a_file(pods_dir: Path) -> None:
    volume = place(pods_dir, "configmap", "settings")
    for content in ({"x": b"1"}, {"x/y": b"2"}, {"x": b"3"}):
        await plain(pods_dir).mount(UID, [files(pods_dir, content)])
        assert seen(volume) == content


async def test_what_has_not_changed_is_not_written_again(pods_dir: Path) -> None:
    plan = files(pods_dir, {"a": b"1", "sub/b": b"2"})
    await plain(pods_dir).mount(UID, [plan])
    version = os.readlink(Path(plan.path) / "..data")
    await plain(pods_dir).mount(UID, [plan])
    assert os.readlink(Path(plan.path) / "..data") == version


@pytest.mark.parametrize("damage", ["truncated", "mode", "missing", "extra", "replaced"])
async def test_what_a_power_cut_or_a_pod_spoilt_is_made_right(pods_dir: Path, damage: str) -> None:
    plan = files(pods_dir, {"a": b"123", "sub/b": b"2"})
    await plain(pods_dir).mount(UID, [plan])
    volume = Path(plan.path)
    version = volume / os.readlink(volume / "..data")
    match damage:
        case "truncated":
            os.truncate(version / "a", 0)
        case "mode":
            (version / "a").chmod(0o600)
        case "missing":
            (version / "a").unlink()
        case "extra":
            (version / "c").touch()
        case "replaced":
            (volume / "a").unlink()
            (volume / "a").mkdir()
            (volume / "a" / "x").touch()
    await plain(pods_dir).mount(UID, [plan])
    assert seen(volume) == {"a": b"123", "sub/b": b"2"}
    assert stat.S_IMODE((volume / "a").stat().st_mode) == 0o644


async def test_a_reader_sees_the_old_files_or_the_new_ones_wherever_the_power_goes(
    pods_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = {"a": b"old", "b": b"old", "gone": b"old"}, {"a": b"new", "b": b"new", "c": b"new"}
    volumes = plain(pods_dir)
    volume = place(pods_dir, "configmap", "settings")
    volumes._mount_all(UID, [files(pods_dir, old)])
    states = set()
    for _ in cuts(monkeypatch, lambda: volumes._mount_all(UID, [files(pods_dir, new)])):
        data = {name: (volume / "..data" / name).read_bytes() for name in os.listdir(volume / "..data")}
        assert data in (old, new)
        states.add(tuple(sorted(data)))
        volumes._mount_all(UID, [files(pods_dir, new)])  # the next boot
        assert seen(volume) == new
        assert len(os.listdir(volume)) == 5
        volumes._mount_all(UID, [files(pods_dir, old)])
    assert len(states) == 2
    assert seen(volume) == new


@pytest.mark.root
async def test_secrets_lie_on_a_tmpfs_and_are_readable_by_the_fs_group(pods_dir: Path) -> None:
    plan = files(pods_dir, {"key": b"s", "deep/key": b"s"}, memory=True, group=4321, mode=0o400)
    assert await mounting(pods_dir).mount(UID, [plan]) == ()
    assert os.path.ismount(plan.path)
    key = os.stat(Path(plan.path) / "key")
    assert (key.st_gid, stat.S_IMODE(key.st_mode)) == (4321, 0o440)
    assert stat.S_IMODE(os.stat(Path(plan.path) / "deep").st_mode) == 0o2755
    await mounting(pods_dir).mount(UID, [files(pods_dir, {"key": b"t"}, memory=True, group=4321, mode=0o400)])
    assert seen(Path(plan.path)) == {"key": b"t"}


@pytest.mark.root
async def test_a_token_belongs_to_the_user_of_the_pod(pods_dir: Path) -> None:
    path = place(pods_dir, "projected", "token")
    plan = FilesPlan("token", str(path), (ProjectedFile("token", b"t", 0o600),), True, None, user=1234)
    await mounting(pods_dir).mount(UID, [plan])
    assert ((path / "token").stat().st_uid, stat.S_IMODE((path / "token").stat().st_mode)) == (1234, 0o600)


async def test_a_version_that_a_pod_made_a_symlink_is_not_written_through(pods_dir: Path, tmp_path: Path) -> None:
    outside = tmp_path / "etc"
    outside.mkdir()
    (outside / "passwd").write_text("root")
    plan = files(pods_dir, {"passwd": b"evil"})
    await plain(pods_dir).mount(UID, [plan])
    volume = Path(plan.path)
    shutil.rmtree(volume / os.readlink(volume / "..data"))
    for name in ("..data", "passwd"):
        (volume / name).unlink()
        (volume / name).symlink_to(outside)
    await plain(pods_dir).mount(UID, [plan])
    assert (outside / "passwd").read_text() == "root"
    assert seen(volume) == {"passwd": b"evil"}


@pytest.mark.parametrize("path", ["..data", "../x", "a/../../x", "a/..", "/etc/x/../../../y", "/x", "a/", ""])
async def test_a_file_has_a_name_below_its_volume(pods_dir: Path, path: str) -> None:
    await plain(pods_dir).mount(UID, [files(pods_dir, {"a": b"old"})])
    with pytest.raises(WorldError, match="volume settings"):
        await plain(pods_dir).mount(UID, [files(pods_dir, {path: b"new"})])
    assert seen(place(pods_dir, "configmap", "settings")) == {"a": b"old"}


async def test_a_full_disk_leaves_the_old_files(pods_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await plain(pods_dir).mount(UID, [files(pods_dir, {"a": b"old"})])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_files, "_write_file", full)
    with pytest.raises(WorldError, match=r"volume settings .* No space left on device \(free some disk space\)"):
        await plain(pods_dir).mount(UID, [files(pods_dir, {"a": b"new"})])
    assert seen(place(pods_dir, "configmap", "settings")) == {"a": b"old"}


# --- subPath --------------------------------------------------------------------------------------


async def made_volume(volumes: Volumes, pods_dir: Path) -> Path:
    plan = empty_dir(pods_dir)
    await volumes.mount(UID, [plan])
    return Path(plan.path)


@pytest.mark.root
async def test_a_subpath_is_bound_and_a_missing_one_is_made_like_the_volume(pods_dir: Path) -> None:
    volumes = mounting(pods_dir)
    volume = await made_volume(volumes, pods_dir)
    plan = subpath(pods_dir, volume, "a/b")
    await volumes.bind(plan)
    (volume / "a/b/file").write_text("x")
    assert (Path(plan.target) / "file").read_text() == "x"
    assert stat.S_IMODE((volume / "a/b").stat().st_mode) == 0o777


@pytest.mark.root
async def test_binding_again_changes_nothing_until_the_source_is_another_one(pods_dir: Path) -> None:
    volumes = mounting(pods_dir)
    volume = await made_volume(volumes, pods_dir)
    plan = subpath(pods_dir, volume, "a")

    def binds() -> list[str]:
        with open("/proc/self/mountinfo", encoding="utf-8") as table:
            return [line.split()[0] for line in table if "volume-subpaths" in line]

    await volumes.bind(plan)
    first = binds()
    await volumes.bind(plan)
    assert binds() == first
    (volume / "a").rename(volume / "old")
    (volume / "a").write_text("now a file")
    await volumes.bind(plan)
    assert len(binds()) == 1
    assert Path(plan.target).read_text() == "now a file"


@pytest.mark.root
async def test_a_read_only_subpath_can_not_be_written_and_keeps_the_flags_of_its_volume(pods_dir: Path) -> None:
    volumes = mounting(pods_dir)
    plan = files(pods_dir, {"key": b"s"}, memory=True)
    await volumes.mount(UID, [plan])
    bound = subpath(pods_dir, Path(plan.path), "key", create=False, read_only=True)
    await volumes.bind(bound)
    assert Path(bound.target).read_bytes() == b"s"
    flags = os.statvfs(bound.target).f_flag
    assert flags & os.ST_RDONLY
    assert flags & os.ST_NOSUID
    with pytest.raises(OSError, match="Read-only"):
        Path(bound.target).write_bytes(b"x")


@pytest.mark.parametrize("trick", ["/etc", "../../../../../../../etc", "loop", "inner/../../x"])
async def test_a_subpath_never_leaves_its_volume(pods_dir: Path, trick: str) -> None:
    volumes = plain(pods_dir)
    volume = await made_volume(volumes, pods_dir)
    (volume / "link").symlink_to(trick)
    (volume / "loop").symlink_to("loop")
    (volume / "inner").mkdir()
    for path in ("link", "link/passwd", "inner/../link"):
        with pytest.raises(WorldError, match=r"leads out of the folder|too many symbolic links"):
            await volumes.bind(subpath(pods_dir, volume, path))
    assert not os.path.lexists(subpath(pods_dir, volume, "").target)


async def test_a_symlink_that_stays_in_the_volume_is_followed(pods_dir: Path) -> None:
    volumes = plain(pods_dir)
    await volumes.mount(UID, [files(pods_dir, {"nginx.conf": b"ok"})])
    plan = subpath(pods_dir, place(pods_dir, "configmap", "settings"), "nginx.conf", create=False)
    await volumes.bind(plan)
    assert Path(plan.target).read_bytes() == b"ok"


async def test_a_subpath_that_is_missing_where_none_may_be_made_is_refused(pods_dir: Path) -> None:
    volumes = plain(pods_dir)
    volume = await made_volume(volumes, pods_dir)
    with pytest.raises(WorldError, match="subPath nothing: No such file"):
        await volumes.bind(subpath(pods_dir, volume, "nothing", create=False))


@pytest.mark.root
async def test_a_pod_that_swaps_a_folder_for_a_symlink_at_any_step_binds_nothing_of_the_host(
    pods_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod acts between any two system calls of the walk: each time at another one."""
    secret = tmp_path / "etc"
    (secret / "b").mkdir(parents=True)
    (secret / "b" / "shadow").write_text("host")
    volumes = mounting(pods_dir)
    volume = await made_volume(volumes, pods_dir)
    real_open = os.open
    outcomes = set()
    for attack_at in range(1, 40):
        shutil.rmtree(volume / "a", ignore_errors=True)
        (volume / "a" / "b").mkdir(parents=True)
        opened = 0

        def attacked(*args: object, at: int = attack_at, **kwargs: object) -> int:
            nonlocal opened
            opened += 1
            if opened == at:
                (volume / "a").rename(volume / f"moved-{at}")
                (volume / "a").symlink_to(secret)
            return real_open(*args, **kwargs)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", attacked)
            try:
                volumes._bind(subpath(pods_dir, volume, "a/b"))
            except WorldError:
                outcomes.add("refused")
            else:
                outcomes.add("bound")
                assert os.listdir(subpath(pods_dir, volume, "").target) == []
        if (volume / "a").is_symlink():
            (volume / "a").unlink()
        if opened < attack_at:
            break
    assert outcomes == {"refused", "bound"}


# --- teardown -------------------------------------------------------------------------------------


async def test_unmounting_a_pod_that_is_not_there_is_no_error(pods_dir: Path) -> None:
    await plain(pods_dir).unmount(UID)
    await Volumes(str(pods_dir / "missing"), mounts=False).unmount(UID)
    assert await plain(pods_dir).uids() == frozenset()


async def test_teardown_does_not_follow_symlinks(pods_dir: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    volumes = plain(pods_dir)
    volume = await made_volume(volumes, pods_dir)
    (volume / "to-folder").symlink_to(outside)
    (volume / "to-file").symlink_to(outside / "kept")
    (volume / "closed").mkdir(mode=0o000)
    assert await volumes.uids() == {UID}
    await volumes.unmount(UID)
    assert os.listdir(pods_dir) == []
    assert (outside / "kept").exists()


async def test_a_folder_that_becomes_a_symlink_during_teardown_is_not_followed(
    pods_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    volumes = plain(pods_dir)
    volume = await made_volume(volumes, pods_dir)
    (volume / "a").mkdir()
    real_open = os.open
    attacked = False

    def attacked_open(path: str, *args: object, **kwargs: object) -> int:
        nonlocal attacked
        if path == "a" and not attacked:
            attacked = True
            os.rmdir(volume / "a")
            (volume / "a").symlink_to(outside)
        return real_open(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", attacked_open)
    await volumes.unmount(UID)
    assert attacked
    assert (outside / "kept").exists()
    assert os.listdir(pods_dir) == []


async def test_a_tree_deeper_than_there_are_descriptors_is_removed(pods_dir: Path) -> None:
    volumes = plain(pods_dir)
    volume = await made_volume(volumes, pods_dir)
    here = os.open(volume, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    await volumes.unmount(UID)
    assert os.listdir(pods_dir) == []


@pytest.mark.root
@pytest.mark.parametrize("bind", [True, False], ids=["bind", "tmpfs"])
async def test_what_is_mounted_from_elsewhere_is_neither_entered_nor_unmounted(
    pods_dir: Path, tmp_path: Path, *, bind: bool
) -> None:
    """A bind mount of the same file system has the same device number: only the mount tells."""
    outside = tmp_path / "outside"
    outside.mkdir()
    volumes = mounting(pods_dir)
    volume = await made_volume(volumes, pods_dir)
    (volume / "a" / "foreign").mkdir(parents=True)
    (volume / "b").touch()
    if bind:
        linux.mount(str(outside), str(volume / "a" / "foreign"), flags=linux.MS_BIND)
    else:
        linux.mount("tmpfs", str(volume / "a" / "foreign"), "tmpfs")
    (volume / "a" / "foreign" / "kept").touch()
    with pytest.raises(WorldError, match=r"something is mounted on .*/scratch/a/foreign"):
        await volumes.unmount(UID)
    assert (volume / "a" / "foreign" / "kept").exists()
    assert not (volume / "b").exists()
    linux.unmount(str(volume / "a" / "foreign"))
    await volumes.unmount(UID)
    assert os.listdir(pods_dir) == []


@pytest.mark.root
async def test_teardown_takes_down_every_mount_of_ours_and_keeps_what_was_bound(pods_dir: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "sub").mkdir(parents=True)
    (host / "sub" / "kept").touch()
    volumes = mounting(pods_dir)
    await volumes.mount(UID, [empty_dir(pods_dir, memory=True), files(pods_dir, {"k": b"v"}, memory=True)])
    await volumes.bind(subpath(pods_dir, host, "sub"))
    await volumes.unmount(UID)
    assert os.listdir(pods_dir) == []
    assert (host / "sub" / "kept").exists()
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        assert UID not in table.read()


async def test_no_descriptor_is_left_open(pods_dir: Path) -> None:
    volumes = plain(pods_dir)
    before = os.listdir("/proc/self/fd")
    for content in ({"a": b"1", "s/b": b"1"}, {"a": b"2"}):
        await volumes.mount(UID, [empty_dir(pods_dir), files(pods_dir, content)])
        await volumes.bind(subpath(pods_dir, place(pods_dir, "empty-dir", "scratch"), "x/y"))
    with pytest.raises(WorldError):
        await volumes.bind(subpath(pods_dir, place(pods_dir, "empty-dir", "scratch"), "../x"))
    await volumes.unmount(UID)
    assert os.listdir("/proc/self/fd") == before
