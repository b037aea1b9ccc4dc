"""Images of a real containerd: pulled, imported, pinned, removed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from tests.adapters.cri_pods import container, rig, run_to_end, runtime_of, sandbox
from tests.fakes.containerd_rig import BUSYBOX, PAUSE, ContainerdRig
from tests.fakes.image_archives import Image, busybox_image, docker_archive, gzipped, oci_archive, zstandard
from tests.fakes.registry import Registry, registry
from tinyedge.adapters import images as images_adapter
from tinyedge.adapters.cri import CriRuntime
from tinyedge.errors import BadInput, PeerError
from tinyedge.model.image import RegistryAuth, find_image
from tinyedge.model.runtime import Security

__all__ = ["rig"]

pytestmark = pytest.mark.containerd


def _plain(path: Path) -> Path:
    return path


@contextmanager
def _registry(rig: ContainerdRig, images: Sequence[Image], login: tuple[str, str] | None = None) -> Iterator[Registry]:
    with registry(images, login=login) as served:
        rig.trust_registry(served.host)
        yield served


# Removing an image removes all its names, so each test makes one of its own content.
async def _forget(runtime: CriRuntime, *references: str) -> None:
    for reference in references:
        await runtime.remove_image(reference)


@pytest.mark.parametrize("wrap", [_plain, gzipped, zstandard])
async def test_a_docker_archive_is_imported_whatever_it_is_wrapped_in(
    rig: ContainerdRig, tmp_path: Path, wrap: Callable[[Path], Path]
) -> None:
    if wrap is zstandard and not shutil.which("zstd"):
        pytest.skip("needs zstd (apt-get install zstd)")
    names = ["tinyedge.test/one:1", "tinyedge.test/two:2"]
    docker_archive(tmp_path / "images.tar", [busybox_image(name, files={name[-1]: b"x"}) for name in names])
    async with runtime_of(rig) as runtime:
        assert sorted(await runtime.import_image(str(wrap(tmp_path / "images.tar")))) == names
        found = await runtime.images()
        assert all(find_image(found, name) for name in names)
        ended = await run_to_end(runtime, sandbox(tmp_path), container("true", image=names[0]))
        assert ended.exit_code == 0
        await _forget(runtime, *names)


async def test_an_oci_archive_is_imported(rig: ContainerdRig, tmp_path: Path) -> None:
    image = busybox_image("tinyedge.test/oci:3", files={"oci": b"x"})
    oci_archive(tmp_path / "image.tar", image)
    async with runtime_of(rig) as runtime:
        assert await runtime.import_image(str(tmp_path / "image.tar")) == [image.name]
        assert find_image(await runtime.images(), image.name)
        await _forget(runtime, image.name)


async def test_the_same_archive_may_be_imported_again(rig: ContainerdRig, tmp_path: Path) -> None:
    docker_archive(tmp_path / "image.tar", [busybox_image("tinyedge.test/again:1", files={"again": b"x"})])
    async with runtime_of(rig) as runtime:
        for _ in range(2):
            assert await runtime.import_image(str(tmp_path / "image.tar")) == ["tinyedge.test/again:1"]
        await _forget(runtime, "tinyedge.test/again:1")


@pytest.mark.parametrize("wrap", [_plain, gzipped])
async def test_half_an_archive_is_refused_with_the_reason(
    rig: ContainerdRig, tmp_path: Path, wrap: Callable[[Path], Path]
) -> None:
    docker_archive(tmp_path / "image.tar", [busybox_image("tinyedge.test/half:1", files={"half": b"x"})])
    whole = wrap(tmp_path / "image.tar")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    async with runtime_of(rig) as runtime:
        with pytest.raises(PeerError, match="unexpected") as caught:
            await runtime.import_image(str(whole))
        assert caught.value.remedy
        assert not find_image(await runtime.images(), "tinyedge.test/half:1")


async def test_what_is_no_file_is_refused(rig: ContainerdRig, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/shadow")
    async with runtime_of(rig) as runtime:
        for path in ("missing", "link", "."):
            with pytest.raises(BadInput):
                await runtime.import_image(str(tmp_path / path))


async def test_a_missing_program_is_named(rig: ContainerdRig, tmp_path: Path) -> None:
    docker_archive(tmp_path / "image.tar", [])
    async with runtime_of(rig) as runtime:
        runtime._images._ctr = "no-such-ctr"
        with pytest.raises(PeerError, match=r"no-such-ctr can't be started.*install no-such-ctr"):
            await runtime.import_image(str(tmp_path / "image.tar"))


async def test_another_runtime_refuses_to_import_by_name(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        runtime._info = msgspec.structs.replace(await runtime.info(), name="cri-o")
        with pytest.raises(PeerError, match="cri-o") as caught:
            await runtime.import_image(str(tmp_path / "image.tar"))
        assert not caught.value.retryable


async def test_an_image_is_pulled_and_removed(rig: ContainerdRig) -> None:
    with _registry(rig, [busybox_image("pulled:1", files={"pulled": b"1"})]) as served:
        reference = f"{served.host}/pulled:1"
        async with runtime_of(rig) as runtime:
            image_id = await runtime.pull_image(reference, [])
            assert image_id == find_image(await runtime.images(), reference)
            (seen,) = [image for image in await runtime.images() if image.id == image_id]
            assert seen.tags == (reference,)
            assert seen.bytes > 0
            await runtime.remove_image(image_id)
            assert find_image(await runtime.images(), reference) == ""


async def test_a_pull_tells_how_far_it_is(rig: ContainerdRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_adapter, "PROGRESS_S", 0.02)
    reports: list[tuple[int, int]] = []
    with _registry(rig, [busybox_image("slow:1", files={"slow": b"1" * 3_000_000})]) as served:
        served.gate.clear()

        def progress(done: int, total: int) -> None:
            reports.append((done, total))
            if total > 3_000_000 and 0 < done < total:
                served.gate.set()

        async with runtime_of(rig) as runtime:
            await runtime.pull_image(f"{served.host}/slow:1", [], progress)
            await _forget(runtime, f"{served.host}/slow:1")
    assert any(0 < done < total for done, total in reports)


async def test_credentials_are_tried_in_turn(rig: ContainerdRig) -> None:
    with _registry(rig, [busybox_image("private:1", files={"private": b"x"})], login=("user", "right")) as served:
        reference = f"{served.host}/private:1"
        wrong, right = (RegistryAuth(served.host, "user", word) for word in ("wrong", "right"))
        async with runtime_of(rig) as runtime:
            assert await runtime.pull_image(reference, [wrong, right])
            await _forget(runtime, reference)
            for auths in ([], [wrong]):
                with pytest.raises(PeerError) as caught:
                    await runtime.pull_image(reference, auths)
                assert caught.value.what == f"ErrImagePull: {reference}"
                assert "wrong" not in str(caught.value)


async def test_what_the_registry_does_not_have_is_a_pull_error(rig: ContainerdRig) -> None:
    with _registry(rig, []) as served:
        async with runtime_of(rig) as runtime:
            with pytest.raises(PeerError, match=r"ErrImagePull.*not found"):
                await runtime.pull_image(f"{served.host}/nothing:1", [])


async def test_a_name_that_is_none_is_said_to_be(rig: ContainerdRig) -> None:
    async with runtime_of(rig) as runtime:
        with pytest.raises(PeerError, match="InvalidImageName"):
            await runtime.pull_image("Not A Name!", [])


async def test_a_pull_is_given_up_when_the_runtime_hangs(rig: ContainerdRig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("PROGRESS_S", 0.01), ("LOOK_S", 0.05), ("HUNG_S", 0.2)):
        monkeypatch.setattr(images_adapter, name, seconds)
    with _registry(rig, [busybox_image("stuck:1", files={"stuck": b"1"})]) as served:
        served.gate.clear()
        async with runtime_of(rig) as runtime:
            await runtime.info()
            rig.freeze()
            try:
                with pytest.raises(PeerError, match="stands still") as caught:
                    await runtime.pull_image(f"{served.host}/stuck:1", [])
            finally:
                served.gate.set()
                rig.thaw()
            assert caught.value.retryable


async def test_a_pull_that_is_cancelled_leaves_the_runtime_usable(rig: ContainerdRig) -> None:
    with _registry(rig, [busybox_image("cancelled:1", files={"cancelled": b"1"})]) as served:
        served.gate.clear()
        reference = f"{served.host}/cancelled:1"
        async with runtime_of(rig) as runtime:
            with trio.move_on_after(0.1) as scope:
                await runtime.pull_image(reference, [])
            assert scope.cancelled_caught
            served.gate.set()
            assert await runtime.pull_image(reference, [])
            await _forget(runtime, reference)


async def test_exactly_the_wanted_images_carry_our_pin(rig: ContainerdRig) -> None:
    def pinned_by_us() -> set[str]:
        lines = rig.run_ctr("images", "ls").splitlines()
        names = {line.split()[0] for line in lines if images_adapter.PINNED_BY_US_LABEL in line}
        assert all(images_adapter.PINNED_LABEL in line for line in lines if line.split()[0] in names)
        return {name for name in names if not name.startswith("sha256:")}

    async with runtime_of(rig) as runtime:
        await runtime.pin_images([BUSYBOX, "tinyedge.test/not-there:1"])
        assert pinned_by_us() == {BUSYBOX}
        await runtime.pin_images([])
        assert pinned_by_us() == set()


async def test_a_pin_of_someone_else_is_left_alone(rig: ContainerdRig) -> None:
    rig.run_ctr("images", "label", PAUSE, f"{images_adapter.PINNED_LABEL}=pinned")
    async with runtime_of(rig) as runtime:
        await runtime.pin_images([PAUSE])
        await runtime.pin_images([])
    assert images_adapter.PINNED_LABEL in rig.run_ctr("images", "ls", f"name=={PAUSE}")


@pytest.mark.parametrize(("user", "may"), [("1000", True), ("nobody", False), ("0:0", False), ("", False)])
async def test_the_images_user_decides_whether_it_may_run_as_non_root(
    rig: ContainerdRig, tmp_path: Path, user: str, *, may: bool
) -> None:
    name = f"tinyedge.test/user-{user.replace(':', '-') or 'none'}:1"
    docker_archive(tmp_path / "image.tar", [busybox_image(name, user=user)])
    async with runtime_of(rig) as runtime:
        await runtime.import_image(str(tmp_path / "image.tar"))
        spec, ran = sandbox(tmp_path), container(image=name, security=Security(run_as_non_root=True))
        sandbox_id = await runtime.run_sandbox(spec)
        if may:
            assert await runtime.start_container(sandbox_id, spec, ran)
        else:
            with pytest.raises(PeerError, match="CreateContainerConfigError"):
                await runtime.start_container(sandbox_id, spec, ran)
