"""Names and filters of MQTT topics: what they may be, and which names a filter means. Pure."""

from __future__ import annotations

from tinyedge.errors import BadInput
from tinyedge.limits import MQTT_TOPIC_BYTES_MAX

_NAME = f"1 to {MQTT_TOPIC_BYTES_MAX} bytes without +, # and zeros"
_FILTER = "levels between slashes, + for any one of them, # as the last one for all that follow"


def check_topic(topic: str, field: str = "topic") -> None:
    """BadInput when nothing can be published under it."""
    if not _fits(topic) or "+" in topic or "#" in topic:
        raise BadInput(field, topic, _NAME)


def check_filter(topic_filter: str, field: str = "topic filter") -> None:
    """BadInput when nothing can be subscribed to by it."""
    levels = topic_filter.split("/")
    whole = all(level in ("+", "#") or not {"+", "#"} & set(level) for level in levels)
    if not _fits(topic_filter) or not whole or "#" in levels[:-1]:
        raise BadInput(field, topic_filter, _FILTER)


def matches(topic_filter: str, topic: str) -> bool:
    """Wildcards at the beginning mean no topic that begins with `$`: those are the broker's own."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    if wanted[-1] == "#":
        wanted.pop()
        if len(levels) < len(wanted):
            return False
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(one in ("+", level) for one, level in zip(wanted, levels, strict=True))


def _fits(text: str) -> bool:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return 0 < size <= MQTT_TOPIC_BYTES_MAX and "\0" not in text
