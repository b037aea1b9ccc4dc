"""`python -m tinyedge`, and the `tinyedge` program.

What must stay small is looked for before the command line is imported: the daemon, and the children that a frozen
program has to start as itself.
"""

from __future__ import annotations

import sys


def main() -> None:
    sys.exit(_dispatch(sys.argv[1:]))


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["process-shim"]:
        from tinyedge.adapters.process import shim

        del sys.argv[1]
        shim.main()
        return 0
    if words[:1] == ["parse-manifest"]:
        from tinyedge.adapters import manifest_child

        manifest_child.main()
        return 0
    if words == ["make-key"]:
        from tinyedge.adapters import key_child

        key_child.main()
        return 0
    if words[:1] == ["stage-version"] and len(words) > 2:
        from tinyedge.upgrade import stage_child

        return stage_child.main(words[1:])
    if words[:1] == ["verify-checkpoint"] and len(words) == 2:
        from tinyedge.store import verify

        return verify.main(words[1])
    if words[:1] == ["run"]:
        from tinyedge.cli.run import quick

        code = quick(words[1:])
        if code is not None:
            return code
    from tinyedge.cli.main import main as command_line

    return command_line()


if __name__ == "__main__":
    main()
