"""`tinyedge run` with a planted bug: an invariant breaks whenever the pod named by $BREAKS_ON is planned."""

from __future__ import annotations

import os

from tinyedge.__main__ import main
from tinyedge.core import pods
from tinyedge.core.desk import Desk
from tinyedge.core.run import PodRun
from tinyedge.errors import require

plan = pods.plan


def breaking_plan(run: PodRun, desk: Desk) -> None:
    require(run.key != os.environ["BREAKS_ON"], "planted")
    plan(run, desk)


if __name__ == "__main__":
    pods.plan = breaking_plan
    main()
