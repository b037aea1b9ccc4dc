"""`python -m tinyedge`, and the `tinyedge` program.

What must stay small is looked for before the command line is imported: the daemon, and the children that a frozen
program has to start as itself.
"""

from __future__ import annotations

import sys


def main() -> None:
    sys.exit(_dispatch(sys.argv[1:]))


def _dispatch(words: list[str]) -> int:
    code = _child(words)
    if code is None and words[:1] == ["run"]:
        from tinyedge.cli.run import quick

        code = quick(words[1:])
    if code is not None:
        return code
    from tinyedge.cli.main import main as command_line

    return command_line()


def _child(words: list[str]) -> int | None:
    """What a child of ours does; None when it is none."""
    code: int | None = 0
    match words:
        case ["process-shim", *_]:
            from tinyedge.adapters.process import shim

            del sys.argv[1]
            shim.main()
        case ["parse-manifest", *_]:
            from tinyedge.adapters import manifest_child

            manifest_child.main()
        case ["make-key"]:
            from tinyedge.adapters import key_child

            key_child.main()
        case ["stage-version", _, _, *_]:
            from tinyedge.upgrade import stage_child

            code = stage_child.main(words[1:])
        case ["verify-checkpoint", path]:
            from tinyedge.store import verify

            code = verify.main(path)
        case _:
            code = None
    return code


if __name__ == "__main__":
    main()
