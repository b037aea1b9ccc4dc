"""How a runtime tells that something happened to a pod of ours: three ways, best first.

containerd's own event service: every subscriber gets every event, in all versions. It tells of an end a few
milliseconds before CRI's listing does, so the listing is asked until it agrees. CRI's GetContainerEvents: what other
runtimes have; containerd 1.7 hands each event to one subscriber only, and the first one after a reconnect to one that
has left. Relisting: two calls every few seconds.

All yield uids of pods, and an empty string when whoever lists now misses nothing that comes later. An event may still
be lost on its way (they are not stored), so the empty string comes again now and then.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TypeVar

import trio

from tinyedge.errors import PeerError
from tinyedge.grpc import Channel, GrpcError, Message, Messages, Status
from tinyedge.protocol import containerd_pb2, cri_pb2

SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"
CRI_EVENTS = "/runtime.v1.RuntimeService/GetContainerEvents"

AGREE_S = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # pauses before each look at a listing that lags behind
CATCH_UP_S = 1.0  # by then a listing shows what had ended just before the subscription

Listing = Mapping[str, tuple[str, bool]]  # by sandbox or container id: uid of the pod, whether it still lives
M = TypeVar("M", bound=Message)
Look = Callable[[], Awaitable[Listing]]


async def of_containerd(
    channel: Channel, look: Look, forget: Callable[[str], None], resync_s: float
) -> AsyncGenerator[str, None]:
    """`forget(container_id)` is called when the reason of an end may have become known after the end."""
    filters = [f'namespace==k8s.io,topic=="/tasks/{topic}"' for topic in ("exit", "oom")]
    request = containerd_pb2.SubscribeRequest(filters=filters)
    async with channel.stream(SUBSCRIBE, request, containerd_pb2.Envelope) as events:
        known = await look()
        yield ""
        caught_up = False
        look_at = trio.current_time() + min(CATCH_UP_S, resync_s)
        while True:
            envelope = await _next_until(events, look_at)
            if envelope is None:
                listing = await look()
                for uid in [""] if caught_up else _ends(known, listing):
                    yield uid
                known, caught_up = listing, True
                look_at = trio.current_time() + resync_s
            elif envelope.topic == "/tasks/oom":
                container_id = containerd_pb2.TaskEvent.FromString(envelope.event.value).container_id
                forget(container_id)
                if container_id in known:
                    yield known[container_id][0]
            else:
                ended = _ended_task(envelope)
                if ended and known.get(ended, ("", True))[1]:
                    listing = await _agreeing(look, ended)
                    for uid in _ends(known, listing):
                        yield uid
                    known = listing


async def of_cri(
    channel: Channel, look: Look, is_ours: Callable[[Mapping[str, str]], bool], resync_s: float, relist_s: float
) -> AsyncGenerator[str, None]:
    try:
        async with channel.stream(CRI_EVENTS, cri_pb2.Empty(), cri_pb2.ContainerEventResponse) as events:
            await look()  # a round trip later the subscription stands
            yield ""
            resync_at = trio.current_time() + resync_s
            while True:
                event = await _next_until(events, resync_at)
                if event is None:
                    yield ""
                    resync_at = trio.current_time() + resync_s
                elif is_ours(event.pod_sandbox_status.labels):
                    yield event.pod_sandbox_status.metadata.uid
    except GrpcError as error:
        if error.status is not Status.UNIMPLEMENTED:
            raise
    async with aclosing(relisting(look, relist_s)) as uids:
        async for uid in uids:
            yield uid


async def relisting(look: Look, relist_s: float) -> AsyncGenerator[str, None]:
    known = await look()
    yield ""
    while True:
        await trio.sleep(relist_s)
        listing = await look()
        different = {**known, **listing}.items() - (known.items() & listing.items())
        for uid in sorted({uid for _, (uid, _) in different}):
            yield uid
        known = listing


async def _next_until(events: Messages[M], deadline: float) -> M | None:
    """The next event; None when the time has come to look for what may have been lost."""
    with trio.move_on_at(deadline):
        try:
            return await anext(events)
        except StopAsyncIteration:
            raise PeerError("the runtime ended its stream of events") from None
    return None


def _ended_task(envelope: containerd_pb2.Envelope) -> str:
    """The container that ended; empty when it was only a process that had been started in one."""
    task = containerd_pb2.TaskExit.FromString(envelope.event.value)
    return task.container_id if task.id == task.container_id else ""


async def _agreeing(look: Look, ended: str) -> Listing:
    """A listing that shows the end of this one. What is not ours is in no listing, and agrees at once."""
    listing: Listing = {}
    for pause_s in AGREE_S:
        await trio.sleep(pause_s)
        listing = await look()
        if not listing.get(ended, ("", False))[1]:
            break
    return listing


def _ends(known: Listing, listing: Listing) -> list[str]:
    """Pods in which something that lived, or was not known, lives no more."""
    gone = {uid for id_, (uid, lived) in known.items() if lived and not listing.get(id_, ("", False))[1]}
    unseen = {uid for id_, (uid, lives) in listing.items() if id_ not in known and not lives}
    return sorted(gone | unseen)
