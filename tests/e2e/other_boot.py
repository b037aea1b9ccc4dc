"""The daemon of another boot on the same machine: the kernel's boot id is what a test can't change but here."""

from __future__ import annotations

import os

from tinyedge.__main__ import main
from tinyedge.adapters import host

VARIABLE = "TINYEDGE_TEST_BOOT_ID"
PATH = "/proc/sys/kernel/random/boot_id"


def run() -> None:
    read = host._text
    host._text = lambda path: os.environ[VARIABLE] if path == PATH else read(path)
    main()


if __name__ == "__main__":
    run()
