"""`tinyedge run` with a planted bug: an invariant breaks whenever the object that $BREAKS_ON names, as `Pod default/a`,
is decided on, or another is looked at with it, as long as its row is read."""

from __future__ import annotations

import os

from tinyedge.__main__ import main
from tinyedge.core.desk import Desk
from tinyedge.errors import require

on = Desk.on


def breaking_on(desk: Desk, kind: str = "", key: str = "", beside: str = "") -> None:
    on(desk, kind, key, beside)
    bad = os.environ["BREAKS_ON"]
    of, _, name = bad.partition(" ")
    require(bad not in (f"{kind} {key}", beside) or desk.tables.why_unreadable(of.lower(), name), "planted")


if __name__ == "__main__":
    Desk.on = breaking_on  # type: ignore[method-assign, assignment]
    main()
