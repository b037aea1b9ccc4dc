"""How a command ends: its exit code, and what a person is told."""

from __future__ import annotations

from tinyedge.errors import TinyEdgeError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_FORBIDDEN = 4


class CliError(TinyEdgeError):
    """Ends a command; `code` is its exit code, `reason` the API's word for the error."""

    def __init__(
        self, what: str, why: str = "", remedy: str = "", *, code: int = EXIT_FAILED, reason: str = ""
    ) -> None:
        super().__init__(what, why, remedy)
        self.code = code
        self.reason = reason
