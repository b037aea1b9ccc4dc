"""The wiring of an unattended join: a first-boot file is read where there is no identity, tried until the gateway is
reached and says yes, and wiped once it has.

Part of the wiring, beside uplink.py. What is wrong stands in `tinyedge status`, in the log and on the console: nobody
is there who could have typed a command.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import trio
from msgspec import Struct

from tinyedge.adapters import identity as machines
from tinyedge.adapters.join import Refused
from tinyedge.adapters.local_api import JoinBody
from tinyedge.errors import BadInput, StoreError, TinyEdgeError
from tinyedge.protocol import joining
from tinyedge.protocol.joining import Taint
from tinyedge.store import join_file
from tinyedge.store.join_file import JoinFile

AGAIN_S_MIN, AGAIN_S_MAX = 2.0, 60.0  # while it can't be reached
REFUSED_S = 300.0  # when it says no, or the file can't be used: somebody has to do something first
CONSOLE = "/dev/console"

Note = Callable[[str, str, Mapping[str, str | int | bool]], None]


class Asked(Struct, frozen=True):
    """A first-boot file. With a `problem` it can't be used, for now. `name` is empty when the file leaves it open."""

    path: str
    gateway: str = ""
    name: str = ""
    problem: str = ""


def look(paths: tuple[str, ...], root: str = "/") -> Asked | None:
    """What a first-boot file asks for; None when there is none. Blocks."""
    path = join_file.find(paths)
    if not path:
        return None
    try:
        found = join_file.read(path)
        if found is None:
            return None
        return Asked(path, found.gateway, _name(found, root))
    except TinyEdgeError as error:
        return Asked(path, problem=str(error))


def _name(found: JoinFile, root: str) -> str:
    """The name that the file asks for, or that its token is for."""
    claims = joining.read_token(found.token)
    name = found.name
    for word, value in (("{serial}", machines.serial_number), ("{mac}", machines.mac_address)):
        if word in name:
            known = value(root)
            if not known:
                raise BadInput("name", found.name, f"one without {word}: this board has none that it would tell")
            name = name.replace(word, known)
    name = name or claims.node
    if name and not joining.valid_name(name):
        raise BadInput(
            "name", name, "lower-case letters, digits, '-' and '.', at most 63; {serial} and {mac} are known"
        )
    return name


class FirstBoot:
    """`join` and `joined` are the uplink's; `tell` shows people what is waited for, in `tinyedge status`."""

    def __init__(
        self,
        asked: Asked,
        node: str,
        *,
        join: Callable[[JoinBody], Awaitable[str]],
        joined: Callable[[], bool],
        tell: Callable[[str], None],
        note: Note,
        console: str = CONSOLE,
    ) -> None:
        self._asked = asked
        self._node = node
        self._join = join
        self._joined = joined
        self._tell = tell
        self._note = note
        self._console = console
        self._told = ""

    async def run(self) -> None:
        """Until this node has joined. The file is read anew at each try: somebody may have corrected it."""
        pause_s = AGAIN_S_MIN
        self._say("info", f"joins by {self._asked.path}")
        while True:
            try:
                words = await self._try()
            except TinyEdgeError as error:
                if isinstance(error, BadInput | Refused | StoreError):
                    pause_s = REFUSED_S
                self._say("error", f"can't join by {self._asked.path}: {error}")
            else:
                if words:
                    await self._wipe(words)
                else:
                    self._tell("")
                return
            await trio.sleep(pause_s)
            pause_s = min(AGAIN_S_MAX, pause_s * 2)

    async def _try(self) -> str:
        """What has come of it; empty when the file is gone."""
        if self._joined():
            return "this node was joined by hand"
        found = await trio.to_thread.run_sync(join_file.read, self._asked.path)
        if found is None:
            return ""
        name = await trio.to_thread.run_sync(_name, found, "/")
        if name and name != self._node:
            raise BadInput("name", name, f"{self._node}, which this daemon runs as: restart it, or see node.name")
        named = "" if joining.read_token(found.token).node else name
        return await self._join(
            JoinBody(found.gateway, found.token, named, found.labels, list(map(_taint, found.taints)))
        )

    async def _wipe(self, words: str) -> None:
        try:
            await trio.to_thread.run_sync(join_file.wipe, self._asked.path)
        except StoreError as error:
            self._say("error", f"{words}, but {error}")
        else:
            self._say("info", f"{words}; {self._asked.path} is wiped")
            self._tell("")

    def _say(self, level: str, words: str) -> None:
        """To everybody who may look, once for each thing that is said."""
        self._tell(words)
        if words == self._told:
            return
        self._told = words
        self._note(level, "first_boot", {"what": words})
        with suppress(OSError):
            fd = os.open(self._console, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, f"tinyedge: {words}\r\n".encode())
            finally:
                os.close(fd)


def _taint(text: str) -> Taint:
    what, _, effect = text.rpartition(":")
    key, _, value = what.partition("=")
    return Taint(key, effect, value)


def wipe_spent(asked: Asked, gateway: str, note: Note) -> None:
    """This node has joined by it and the power went before it was wiped. One for another gateway is left alone."""
    if asked.gateway and asked.gateway != gateway:
        note("warning", "first_boot", {"what": f"{asked.path} is not used: this node has joined {gateway}"})
        return
    try:
        join_file.wipe(asked.path)
    except StoreError as error:
        note("error", "first_boot", {"what": str(error)})
