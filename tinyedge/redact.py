"""Takes the values of secrets out of what people pass on: log lines, status, events.

A value is found as it is, line by line, in base64 and in JSON's spelling. What an application makes of its secret
beyond that (hashes, parts of it) can't be known.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

import msgspec
from msgspec.structs import replace

from tinyedge.errors import BadInput
from tinyedge.events import Event, OpDone, ProbeDone
from tinyedge.model.runtime import PodSeen

REDACTED = "<redacted>"
VALUE_BYTES_MIN = 4  # what is shorter turns up in any text
LINE_BYTES_MAX = 4 * 1024 * 1024


def _forms(values: Iterable[bytes]) -> list[str]:
    """Every spelling of every value, the longest first."""
    forms: set[str] = set()
    for value in values:
        for part in {value, value.strip(), *(line.strip() for line in value.splitlines())}:
            if len(part.strip()) >= VALUE_BYTES_MIN:
                text = part.decode("utf-8", "surrogateescape")
                escaped = msgspec.json.encode(part.decode("utf-8", "replace")).decode()[1:-1]
                forms |= {text, escaped, b64encode(part).decode()}
    return sorted(forms, key=len, reverse=True)


class Redactor:
    def __init__(self, values: Iterable[bytes]) -> None:
        self._forms = _forms(values)

    def text(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, REDACTED)
        return text

    def scrub(self, data: bytes) -> bytes:
        return self.text(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def json(self, document: bytes) -> bytes:
        """Strings only, so that it stays JSON; keys stay, or nobody could read it. What is no JSON is text."""
        try:
            value = msgspec.json.decode(document)
        except msgspec.DecodeError:
            return self.scrub(document)
        return msgspec.json.encode(self._walk(value)) + b"\n"

    def _walk(self, value: object) -> object:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._walk(item) for item in value]
        if isinstance(value, dict):
            return {key: self._walk(item) for key, item in value.items()}
        return value

    async def lines(self, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Whole lines, so that a value on the border of two pieces is found."""
        rest = b""
        async with aclosing(pieces):
            async for piece in pieces:
                whole, newline, rest = (rest + piece).rpartition(b"\n")
                if newline:
                    yield self.scrub(whole + newline)
                elif len(rest) > LINE_BYTES_MAX:
                    raise BadInput("a line of log", rest[:40], f"at most {LINE_BYTES_MAX} bytes")
        if rest:
            yield self.scrub(rest)


Values = Callable[[], Iterable[bytes]]


def without_secrets(event: Event, values: Values) -> Event:
    """A runtime repeats what it could not run, and a probe what it was told: the core puts that into logs, events and
    statuses."""
    if isinstance(event, PodSeen):
        return _pod(event, values)
    if isinstance(event, OpDone) and event.seen is not None:
        event = replace(event, seen=_pod(event.seen, values))
    if isinstance(event, OpDone | ProbeDone) and event.message:
        event = replace(event, message=Redactor(values()).text(event.message))
    if isinstance(event, OpDone) and " " in event.detail:  # the words of a hook; an id stays what it is
        event = replace(event, detail=Redactor(values()).text(event.detail))
    return event


def _pod(seen: PodSeen, values: Values) -> PodSeen:
    if not any(one.message for one in seen.containers):
        return seen
    redactor = Redactor(values())
    return replace(seen, containers=tuple(replace(one, message=redactor.text(one.message)) for one in seen.containers))
