"""From argv to a command, and from its errors to exit codes.

0 done · 1 failed, refused, or findings · 2 wrong usage · 3 the daemon is not reachable · 4 not permitted
130 interrupted · `exec` ends with the exit code of what it ran
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

from tinyedge.cli.commands import BY_NAME, COMMANDS, GLOBAL, NAMESPACE, Argument, Command, Option
from tinyedge.cli.errors import EXIT_FAILED, EXIT_USAGE, CliError
from tinyedge.cli.output import show
from tinyedge.errors import TinyEdgeError

EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no arrow gets a question mark
    try:
        args = parse(words)
        if args is None:
            print(overview())
            return 0 if words else EXIT_USAGE
        code = int(import_module(f"tinyedge.cli.{BY_NAME[args.command].module}").run(args))
        sys.stdout.flush()
        return code
    except TinyEdgeError as error:
        _tell(error, as_json="json" in words)
        return error.code if isinstance(error, CliError) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if os.environ.get("TINYEDGE_TRACEBACK"):
            raise
        what = f"{type(error).__name__}: {error}"
        _tell(
            CliError("a mistake of tinyedge's own", what, "report it, with what TINYEDGE_TRACEBACK=1 adds"),
            as_json=False,
        )
        return EXIT_FAILED
    except BrokenPipeError:
        # Whoever read our output has had enough; Python would complain once more when it flushes at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE


def parse(words: list[str]) -> argparse.Namespace | None:
    """The arguments of the command that `words` name; None for none, or for help about all. Exits on wrong usage."""
    first = _leading(words)
    if first == len(words) or words[first] in ("help", "-h", "--help"):
        named = words[first + 1 :] if first < len(words) else []
        if not named or named[0] not in BY_NAME:
            return None
        words, first = [*named[:1], "--help"], 0
    name = words[first]
    if name == "--version":
        name = "version"
    if name not in BY_NAME:
        raise CliError(f"there is no command {name!r}", "", _suggestion(name), code=EXIT_USAGE)
    command = BY_NAME[name]
    given = [*words[:first], *words[first + 1 :]]
    rest: list[str] = []
    if command.rest and "--" in given:
        cut = given.index("--")
        given, rest = given[:cut], given[cut + 1 :]
    args, strange = parser(command).parse_known_intermixed_args(given)
    if strange:
        _refuse(command, strange)
    args.command, args.rest = name, rest
    return args


def _refuse(command: Command, strange: list[str]) -> None:
    if command.rest:
        what, remedy = "the command to run stands behind --", f"{command.examples[0]}"
    else:
        what, remedy = f"{command.name} does not know {' '.join(strange)}", f"tinyedge {command.name} --help"
    raise CliError(what, "", remedy, code=EXIT_USAGE)


def _leading(words: list[str]) -> int:
    """How many words stand before the command: options that may stand there, with their values."""
    n = 0
    flags = {flag for option in (*GLOBAL, NAMESPACE) for flag in option.flags}
    while n < len(words) and words[n].startswith("-") and words[n].partition("=")[0] in flags:
        n += 1 if "=" in words[n] else 2
    return min(n, len(words))


def _suggestion(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(BY_NAME), 1)
    return f"did you mean {near[0]}?" if near else "tinyedge --help lists them"


class Parser(argparse.ArgumentParser):
    """Wrong usage is told like every other error."""

    command: Command

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (?:\S+/)?(\S+): invalid choice", r"\1: invalid choice", message)
        if message.startswith("the following arguments are required"):
            missing = [one.name.upper() for one in self.command.arguments if one.nargs in ("", "+")]
            message = f"something is missing of: {' '.join(missing)}"
        remedy = f"{usage(self.command)}; tinyedge {self.command.name} --help tells more"
        raise CliError(f"{self.command.name}: {message}", "", remedy, code=EXIT_USAGE)


def parser(command: Command) -> argparse.ArgumentParser:
    made = Parser(
        prog=f"tinyedge {command.name}",
        description=command.help[0].upper() + command.help[1:] + ".",
        epilog="\n".join(["examples:", *(f"  {line}" for line in command.examples)]) if command.examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=usage(command),
        allow_abbrev=False,
    )
    made.command = command
    for argument in command.arguments:
        _add_argument(made, argument)
    for option in (*command.options, *GLOBAL):
        _add_option(made, option)
    return made


def usage(command: Command) -> str:
    words = [f"tinyedge {command.name}", "[options]"]
    for argument in command.arguments:
        shown = argument.name.upper()
        words.append({"": shown, "?": f"[{shown}]", "*": f"[{shown} ...]", "+": f"{shown} ..."}[argument.nargs])
    return " ".join([*words, "-- COMMAND [ARG ...]"] if command.rest else words)


def _add_argument(made: argparse.ArgumentParser, argument: Argument) -> None:
    made.add_argument(
        argument.name,
        metavar=argument.name.upper(),
        help=argument.help,
        nargs=argument.nargs or None,
        choices=(*argument.choices, *argument.aliases) or None,
    )


def _add_option(made: argparse.ArgumentParser, option: Option) -> None:
    if not option.value:
        made.add_argument(*option.flags, dest=option.name, action="store_true", help=option.help)
    elif option.many:
        made.add_argument(
            *option.flags, dest=option.name, action="append", default=[], metavar=option.value, help=option.help
        )
    else:
        made.add_argument(
            *option.flags,
            dest=option.name,
            metavar="|".join(option.choices) or option.value,
            choices=option.choices or None,
            help=option.help,
        )


def overview() -> str:
    lines = [
        "tinyedge runs Kubernetes pods on a gateway that loses power and network.",
        "",
        "usage: tinyedge COMMAND …",
    ]
    for group in dict.fromkeys(command.group for command in COMMANDS):
        lines += ["", f"{group}:"]
        lines += [f"  {command.name:<14}{command.help}" for command in COMMANDS if command.group == group]
    return "\n".join([*lines, "", "tinyedge COMMAND --help tells more about one of them."])


def _tell(error: TinyEdgeError, *, as_json: bool) -> None:
    """What happened, why, what to do next; on stderr."""
    if as_json:
        told = {"what": error.what, "why": error.why, "remedy": error.remedy}
        if reason := getattr(error, "reason", ""):
            told["reason"] = reason
        show(json.dumps({"error": told}), file=sys.stderr)
        return
    show(f"error: {error.what}" + (f": {error.why}" if error.why else ""), file=sys.stderr)
    if error.remedy:
        show(f"  → {error.remedy}", file=sys.stderr)
