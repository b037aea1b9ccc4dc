"""The images of a CRI runtime: list, pull, remove; and what CRI lacks, by containerd's own services and `ctr`.

Only containerd can import an archive, tell how far a pull has come, and mark an image as not to be collected; another
runtime refuses the first by name and goes without the others.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import TypeVar

import trio

from tinyedge import limits
from tinyedge.adapters.cri_messages import image_seen
from tinyedge.adapters.runtime import Progress, RegistryAuth
from tinyedge.errors import BadInput, PeerError
from tinyedge.grpc import Channel, GrpcError, Message, NoAnswer, Status
from tinyedge.model.image import normal_reference
from tinyedge.model.runtime import ContainerSpec, ImageSeen, RuntimeInfo
from tinyedge.protocol import containerd_pb2, cri_pb2

SERVICE = "/runtime.v1.ImageService/"
CONTENT_STATUSES = "/containerd.services.content.v1.Content/ListStatuses"
IMAGES_LIST = "/containerd.services.images.v1.Images/List"
IMAGES_UPDATE = "/containerd.services.images.v1.Images/Update"

LOOK_S = 10.0
REMOVE_S = 120.0
PROGRESS_S = 1.0
HUNG_S = 60.0  # a runtime that answers nothing for this long while it pulls has stopped pulling
STALL_S = 1800.0  # nothing came, nothing was read: unpacking a large image on a slow card may look like that
PULL_S_MAX = 6 * 3600.0
VISIBLE_S = 10.0  # from containerd's own image store to CRI's

PINNED_LABEL = "io.cri-containerd.pinned"
PINNED_BY_US_LABEL = "tinyedge.io/pinned"

# What an archive may be wrapped in, by its first bytes.
UNPACKERS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}

M = TypeVar("M", bound=Message)


class Images:
    def __init__(self, channel: Channel, socket: str, ctr: str) -> None:
        self._channel = channel
        self._socket = socket
        self._ctr = ctr

    async def all(self) -> list[ImageSeen]:
        answer = await self._call("ListImages", cri_pb2.Empty(), cri_pb2.ListImagesResponse)
        return [image_seen(image) for image in answer.images]

    async def remove(self, image_id: str) -> None:
        await self._call("RemoveImage", _named(image_id), cri_pb2.Empty, REMOVE_S)

    async def user_for(self, spec: ContainerSpec) -> tuple[int | None, str]:
        """Whom to run as: (uid, user name); None and empty leave it to the image. Asks for the image only when the
        pod says something that depends on it. Raises PeerError (CreateContainerConfigError) when it must not run."""
        security = spec.security
        if security.run_as_user is not None:
            if security.run_as_non_root and security.run_as_user == 0:
                raise _refused("runAsNonRoot is set, and runAsUser is 0")
            return security.run_as_user, ""
        if not security.run_as_non_root and security.run_as_group is None:
            return None, ""
        image = (await self._call("ImageStatus", _named(spec.image), cri_pb2.ImageStatusResponse)).image
        if not image.id:
            raise PeerError("CreateContainerError", f"image {spec.image} is not on this node")
        uid = image.uid.value if image.HasField("uid") else None
        if security.run_as_non_root and image.username:
            raise _refused(f"runAsNonRoot is set, and the image's user {image.username!r} has no number to check")
        if security.run_as_non_root and not uid:
            raise _refused("runAsNonRoot is set, and the image runs as root")
        return (0 if uid is None and not image.username else uid), image.username

    async def pull(
        self, image: str, auths: Sequence[RegistryAuth], progress: Progress | None, info: RuntimeInfo
    ) -> str:
        """The image id. Credentials are tried in order; without any the registry is asked as nobody."""
        failure: PeerError | None = None
        for auth in auths or (None,):
            try:
                return await self._pull(image, auth, progress, watched=info.name == "containerd")
            except GrpcError as error:
                reason = "InvalidImageName" if "invalid reference format" in error.detail else "ErrImagePull"
                failure = PeerError(f"{reason}: {image}", error.detail, retryable=error.retryable)
                if error.status is Status.UNAVAILABLE or isinstance(error, NoAnswer):
                    break
        raise failure or PeerError(f"ErrImagePull: {image}")

    async def _pull(self, image: str, auth: RegistryAuth | None, progress: Progress | None, *, watched: bool) -> str:
        request = cri_pb2.PullImageRequest(image=cri_pb2.ImageSpec(image=image), auth=_auth(auth))
        result: str | GrpcError = GrpcError(f"{SERVICE}PullImage", Status.UNAVAILABLE, "the pull stands still")
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as pulling:
                if watched:
                    nursery.start_soon(self._watch_pull, progress, pulling.cancel)
                try:
                    result = (await self._call("PullImage", request, cri_pb2.PullImageResponse, PULL_S_MAX)).image_ref
                except GrpcError as error:
                    result = error
            nursery.cancel_scope.cancel()
        if isinstance(result, GrpcError):
            raise result
        return result

    async def _watch_pull(self, progress: Progress | None, give_up: Callable[[], None]) -> None:
        """Reports the downloads under way (all of them: containerd does not say which belong to one pull), and gives
        up when nothing moves or nobody answers any more."""
        seen: dict[str, tuple[int, int]] = {}
        answered = moved = trio.current_time()
        while trio.current_time() - answered < HUNG_S and trio.current_time() - moved < STALL_S:
            await trio.sleep(PROGRESS_S)
            try:
                found = await self._downloads()
            except GrpcError:
                continue
            answered = trio.current_time()
            now = {ref: (total, total) for ref, (_, total) in seen.items()} | found  # what is gone is complete
            if now != seen:
                moved, seen = answered, now
                if progress is not None:
                    progress(sum(done for done, _ in seen.values()), sum(total for _, total in seen.values()))
        give_up()

    async def _downloads(self) -> dict[str, tuple[int, int]]:
        request = containerd_pb2.ListStatusesRequest()
        answer = await self._channel.unary(
            CONTENT_STATUSES, request, containerd_pb2.ListStatusesResponse, timeout_s=LOOK_S
        )
        return {each.ref: (each.offset, each.total) for each in answer.statuses}

    # --- archives --------------------------------------------------------------------------------

    async def load(self, path: str, progress: Progress | None, info: RuntimeInfo) -> list[str]:
        """Import an archive (docker or OCI layout, plain, gzip or zstd); the names of its images."""
        if info.name != "containerd":
            raise PeerError(
                "image import is not possible",
                f"it needs containerd's own services, and this runtime is {info.name}",
                "pull the image from a registry, or load it with the runtime's own tool",
                retryable=False,
            )
        # `--local` is how ctr 2 does what ctr 1 does: import through content and image service, and say the names.
        local = ["--local"] if info.version.removeprefix("v").partition(".")[0] not in ("0", "1") else []
        ctr = [self._ctr, "--address", self._socket, "--namespace", "k8s.io", "images", "import", *local, "-"]
        with _Archive(path) as archive:
            code, output = await archive.feed(ctr, progress)
        lines = output.decode(errors="replace").splitlines()
        if code != 0:
            why = next((line for line in reversed(lines) if line.strip()), f"ctr ended with {code}")
            raise PeerError(f"image import of {path} failed", why, "check that it is a whole docker or OCI archive")
        names = [line.split()[1] for line in lines if line.startswith("unpacking ")]
        await self._wait_until_visible(names)
        return names

    async def _wait_until_visible(self, names: Sequence[str]) -> None:
        """CRI takes a new image over when it hears of it; a container made before that would not find it."""
        with trio.move_on_after(VISIBLE_S):
            for name in names:
                pause_s = 0.005
                while not (await self._call("ImageStatus", _named(name), cri_pb2.ImageStatusResponse)).image.id:
                    await trio.sleep(pause_s)
                    pause_s *= 2

    # --- pins ------------------------------------------------------------------------------------

    async def pin(self, references: Collection[str], info: RuntimeInfo) -> None:
        """Exactly the images of these references carry our pin. What others have pinned is left alone."""
        if info.name != "containerd":
            return
        wanted = {normal_reference(reference) for reference in references}
        request = containerd_pb2.ListImagesRequest()
        answer = await self._channel.unary(IMAGES_LIST, request, containerd_pb2.ListImagesResponse, timeout_s=LOOK_S)
        digests = {image.target.digest for image in answer.images if image.name in wanted}
        for image in answer.images:
            pinned = image.name in wanted or (image.name.startswith("sha256:") and image.target.digest in digests)
            if pinned != (PINNED_BY_US_LABEL in image.labels) and (pinned is False or PINNED_LABEL not in image.labels):
                await self._label(image, {PINNED_LABEL: "pinned", PINNED_BY_US_LABEL: "true"}, present=pinned)

    async def _label(self, listed: containerd_pb2.Image, labels: dict[str, str], *, present: bool) -> None:
        """The target is not changed, but containerd 1.7 and later fall over an image that comes without one."""
        wanted = {key: value if present else "" for key, value in labels.items()}
        image = containerd_pb2.Image(name=listed.name, labels=wanted, target=listed.target)
        mask = containerd_pb2.FieldMask(paths=[f"labels.{key}" for key in labels])
        request = containerd_pb2.UpdateImageRequest(image=image, update_mask=mask)
        try:
            await self._channel.unary(IMAGES_UPDATE, request, containerd_pb2.UpdateImageResponse, timeout_s=LOOK_S)
        except GrpcError as error:
            if error.status is not Status.NOT_FOUND:
                raise

    async def _call(self, method: str, request: Message, response: type[M], timeout_s: float = LOOK_S) -> M:
        return await self._channel.unary(SERVICE + method, request, response, timeout_s=timeout_s)


class _Archive:
    """An open archive that programs read: `ctr`, or what unpacks it for `ctr`. The file's offset is shared with the
    reader, which is how the progress is known without touching the data."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise BadInput("image archive", path, f"a file that can be read ({error.strerror})") from None
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._file)
            raise BadInput("image archive", path, "a regular file")
        self._size = status.st_size

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    async def feed(self, ctr: Sequence[str], progress: Progress | None) -> tuple[int, bytes]:
        """The exit code of `ctr`, and what it and the unpacker printed."""
        head = os.pread(self._file, 4, 0)
        unpackers = [[name, "-dc"] for magic, name in UNPACKERS.items() if head.startswith(magic)]
        result: tuple[int, bytes] | PeerError = PeerError(f"image import of {self._path} failed", "it stands still")
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as importing:
                nursery.start_soon(self._report, progress, importing.cancel)
                try:
                    result = await _pipe([*unpackers, ctr], self._file)
                except PeerError as error:
                    result = error
            nursery.cancel_scope.cancel()
        if isinstance(result, PeerError):
            raise result
        return result

    async def _report(self, progress: Progress | None, give_up: Callable[[], None]) -> None:
        done, moved = 0, trio.current_time()
        while trio.current_time() - moved < STALL_S:
            await trio.sleep(PROGRESS_S)
            offset = os.lseek(self._file, 0, os.SEEK_CUR)
            if offset != done:
                done, moved = offset, trio.current_time()
                if progress is not None:
                    progress(done, self._size)
        give_up()


async def _pipe(commands: Sequence[Sequence[str]], stdin: int) -> tuple[int, bytes]:
    """`first | second | ...`: an exit code, 0 when all went well, and what they printed that was not passed on."""
    read, write = os.pipe2(os.O_CLOEXEC)
    processes: list[trio.Process] = []
    async with trio.lowlevel.FdStream(read) as output:
        try:
            with ExitStack() as ours:
                ours.callback(os.close, write)
                for command in commands[:-1]:
                    source, sink = os.pipe2(os.O_CLOEXEC)
                    ours.callback(os.close, source)
                    ours.callback(os.close, sink)
                    processes.append(await _start(command, stdin, sink, write))
                    stdin = source
                processes.append(await _start(commands[-1], stdin, write, write))
            printed = await _read_all(output)
            codes = [await process.wait() for process in processes]
            # Whoever unpacks is cut off when the end of the archive was seen before the end of the file.
            return next((code for code in reversed(codes) if code not in (0, -signal.SIGPIPE)), 0), printed
        finally:
            await _end(processes)


async def _start(command: Sequence[str], stdin: int, stdout: int, stderr: int) -> trio.Process:
    try:
        return await trio.lowlevel.open_process(list(command), stdin=stdin, stdout=stdout, stderr=stderr)
    except OSError as error:
        raise PeerError(
            f"{command[0]} can't be started", error.strerror or str(error), f"install {command[0]}", retryable=False
        ) from None


async def _read_all(stream: trio.lowlevel.FdStream) -> bytes:
    """To the end, but only the end is kept: that is where names and errors are."""
    kept = b""
    async for chunk in stream:
        kept = (kept + chunk)[-limits.IMPORT_OUTPUT_BYTES_MAX :]
    return kept


async def _end(processes: Sequence[trio.Process]) -> None:
    with trio.CancelScope(shield=True):
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _named(image: str) -> cri_pb2.ImageRequest:
    return cri_pb2.ImageRequest(image=cri_pb2.ImageSpec(image=image))


def _auth(auth: RegistryAuth | None) -> cri_pb2.AuthConfig | None:
    if auth is None:
        return None
    return cri_pb2.AuthConfig(username=auth.username, password=auth.password, identity_token=auth.token)


def _refused(why: str) -> PeerError:
    return PeerError("CreateContainerConfigError", why, retryable=False)
