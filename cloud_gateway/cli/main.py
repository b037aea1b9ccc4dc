"""From argv to a command, and from its errors to exit codes.

0 done · 1 failed or refused · 2 wrong usage · 3 Kubernetes is not reachable · 4 not permitted · 130 interrupted
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from cloud_gateway.cli.commands import BY_NAME, COMMANDS, Argument, Command, Option
from cloud_gateway.cli.output import show
from tinyedge.cli.errors import EXIT_FAILED, EXIT_FORBIDDEN, EXIT_UNREACHABLE, EXIT_USAGE, CliError
from tinyedge.errors import BadInput, TinyEdgeError

PROGRAM = "tinyedge-gateway"
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        found = find(words)
        if found is None:
            print(overview())
            return 0 if words else EXIT_USAGE
        args = parser(found).parse_args(words[len(found.name.split()) :])
        args.command = found.name
        code = int(import_module(f"cloud_gateway.cli.{found.module}").run(args))
        sys.stdout.flush()
        return code
    except TinyEdgeError as error:
        _tell(error, as_json="json" in words)
        return code_of(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough; Python would complain once more when it flushes at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE


def find(words: Sequence[str]) -> Command | None:
    """The command that `words` begin with; None for none, or for help about all. CliError for one that is not there."""
    if words[:1] == ["--version"]:
        return BY_NAME["version"]
    if not words or words[0] in ("-h", "--help", "help"):
        return None
    for length in (2, 1):
        found = BY_NAME.get(" ".join(words[:length]))
        if found is not None:
            return found
    family = [command.name for command in COMMANDS if command.name.startswith(words[0] + " ")]
    if family and words[1:2] in ([], ["-h"], ["--help"]):
        remedy = f"{PROGRAM} " + " | ".join(family)
        raise CliError(f"{words[0]}: what of it?", "", remedy, code=EXIT_USAGE)
    shown = " ".join(words[:2] if family else words[:1])
    raise CliError(f"there is no command {shown!r}", "", _suggestion(shown), code=EXIT_USAGE)


def _suggestion(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(BY_NAME), 1)
    return f"did you mean {near[0]}?" if near else f"{PROGRAM} --help lists them"


def code_of(error: TinyEdgeError) -> int:
    """What a command that failed so ends with."""
    if isinstance(error, CliError):
        return error.code
    if isinstance(error, BadInput):
        return EXIT_USAGE if error.field.startswith("--") else EXIT_FAILED
    if getattr(error, "status", None) in (401, 403):
        return EXIT_FORBIDDEN
    return EXIT_UNREACHABLE if getattr(error, "unreachable", False) else EXIT_FAILED


class Parser(argparse.ArgumentParser):
    """Wrong usage is told like every other error."""

    command: Command

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (?:\S+/)?(\S+): invalid choice", r"\1: invalid choice", message)
        remedy = f"{usage(self.command)}; {PROGRAM} {self.command.name} --help tells more"
        raise CliError(f"{self.command.name}: {message}", "", remedy, code=EXIT_USAGE)


def parser(command: Command) -> Parser:
    made = Parser(
        prog=f"{PROGRAM} {command.name}",
        description=command.help[0].upper() + command.help[1:] + ".",
        epilog="\n".join(["examples:", *(f"  {line}" for line in command.examples)]) if command.examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=usage(command),
        allow_abbrev=False,
    )
    made.command = command
    for argument in command.arguments:
        _add_argument(made, argument)
    for option in command.options:
        _add_option(made, option)
    return made


def usage(command: Command) -> str:
    words = [PROGRAM, command.name, *(["[options]"] if command.options else [])]
    return " ".join([*words, *(argument.name.upper() for argument in command.arguments)])


def _add_argument(made: Parser, argument: Argument) -> None:
    made.add_argument(argument.name, metavar=argument.name.upper(), help=argument.help, nargs=argument.nargs or None)


def _add_option(made: Parser, option: Option) -> None:
    words = option.help.replace("%", "%%")
    if option.many:
        made.add_argument(
            *option.flags, dest=option.name, action="append", default=[], metavar=option.value, help=words
        )
    else:
        made.add_argument(
            *option.flags,
            dest=option.name,
            metavar="|".join(option.choices) or option.value,
            choices=option.choices or None,
            default=option.default,
            help=words,
        )


def overview() -> str:
    width = max(len(command.name) for command in COMMANDS) + 3
    return "\n".join(
        [
            f"{PROGRAM} makes tinyedge nodes ordinary nodes of a Kubernetes cluster.",
            "",
            f"usage: {PROGRAM} COMMAND …",
            "",
            *(f"  {command.name:<{width}}{command.help}" for command in COMMANDS),
            "",
            f"{PROGRAM} COMMAND --help tells more about one of them.",
        ]
    )


def _tell(error: TinyEdgeError, *, as_json: bool) -> None:
    """What happened, why, what to do next; on stderr."""
    if as_json:
        told = {"what": error.what, "why": error.why, "remedy": error.remedy}
        show(json.dumps({"error": told}), file=sys.stderr)
        return
    show(f"error: {error.what}" + (f": {error.why}" if error.why else ""), file=sys.stderr)
    if error.remedy:
        show(f"  → {error.remedy}", file=sys.stderr)
