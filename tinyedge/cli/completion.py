"""`tinyedge completion`: scripts for bash, zsh and fish, made from the table of commands.

Names of pods and devices are asked of the node while one types; when it does not answer, nothing is offered.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from tinyedge.cli.commands import COMMANDS, GLOBAL, KINDS, Command, Option
from tinyedge.cli.output import show


def run(args: argparse.Namespace) -> int:
    show({"bash": bash, "zsh": zsh, "fish": fish}[args.shell]())
    return 0


def _options(command: Command) -> tuple[Option, ...]:
    return (*command.options, *GLOBAL, Option(("-h", "--help"), "show help"))


def _flags(command: Command) -> str:
    return " ".join(flag for option in _options(command) for flag in option.flags)


def _words(command: Command) -> list[str]:
    """What may stand as the command's first word, where that is known: choices or kinds."""
    first = command.arguments[0] if command.arguments else None
    if first is None:
        return []
    if first.choices:
        return list(first.choices)
    return list(KINDS) if first.complete == "kinds" else []


def bash() -> str:
    cases = "\n".join(_bash_case(command) for command in COMMANDS)
    names = " ".join(command.name for command in COMMANDS)
    return f"""\
# bash completion for tinyedge: source <(tinyedge completion bash)
_tinyedge_names() {{
    tinyedge get "$1" -o name 2>/dev/null | cut -d/ -f2-
}}
_tinyedge() {{
    local cur prev cmd first second flags words values i
    cur=${{COMP_WORDS[COMP_CWORD]}}
    prev=${{COMP_WORDS[COMP_CWORD-1]}}
    cmd= first= second=
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            --socket|--config|--set|-n|--namespace|-o|--output|-l|--selector|-c|--container) ((i++)) ;;
            -*) ;;
            *) if [[ -z $cmd ]]; then cmd=${{COMP_WORDS[i]}}
               elif [[ -z $first ]]; then first=${{COMP_WORDS[i]}}
               else second=${{COMP_WORDS[i]}}; fi ;;
        esac
    done
    COMPREPLY=()
    if [[ -z $cmd ]]; then
        COMPREPLY=($(compgen -W "{names} --help" -- "$cur"))
        return
    fi
    flags= words= values=
    case $cmd in
{cases}
    esac
    case $prev in
        -o|--output) COMPREPLY=($(compgen -W "$values" -- "$cur")); return ;;
        -f|--filename|--config|--socket) COMPREPLY=($(compgen -f -- "$cur")); return ;;
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    elif [[ $words == @files || ( $cmd == image && $first == import ) ]]; then
        COMPREPLY=($(compgen -f -- "$cur"))
    elif [[ $words == @* ]]; then
        [[ -z $first ]] && COMPREPLY=($(compgen -W "$(_tinyedge_names "${{words#@}}")" -- "$cur"))
    elif [[ $cmd == device && -n $first ]]; then
        [[ -z $second ]] && COMPREPLY=($(compgen -W "$(_tinyedge_names devices)" -- "$cur"))
    elif [[ -z $first ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    elif [[ $first != */* && $cmd != image && $cmd != top ]]; then
        COMPREPLY=($(compgen -W "$(_tinyedge_names "$first")" -- "$cur"))
    fi
}}
complete -F _tinyedge tinyedge"""


def _bash_case(command: Command) -> str:
    first = command.arguments[0] if command.arguments else None
    words = " ".join(_words(command)) or (f"@{first.complete}" if first and first.complete else "")
    values = " ".join(_output_values(command))
    return f'        {command.name}) flags="{_flags(command)}" words="{words}" values="{values}" ;;'


def _output_values(command: Command) -> tuple[str, ...]:
    return next((option.choices for option in command.options if option.name == "output"), ())


def zsh() -> str:
    listed = "\n".join(f"        '{command.name}:{_quoted(command.help)}'" for command in COMMANDS)
    cases = "\n".join(_zsh_case(command) for command in COMMANDS)
    return f"""\
#compdef tinyedge
# zsh completion for tinyedge: tinyedge completion zsh > "${{fpath[1]}}/_tinyedge"
_tinyedge_names() {{
    local -a names
    names=(${{(f)"$(tinyedge get $1 -o name 2>/dev/null | cut -d/ -f2-)"}})
    compadd -a names
}}
_tinyedge_objects() {{
    local kind=${{words[2]}}
    [[ -n $kind && $kind != -* && $kind != */* ]] && _tinyedge_names $kind
}}
_tinyedge() {{
    local -a commands
    commands=(
{listed}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=${{words[2]}}
    shift words
    (( CURRENT-- ))
    case $command in
{cases}
    esac
}}
compdef _tinyedge tinyedge"""


def _zsh_case(command: Command) -> str:
    specs = [_zsh_option(option) for option in _options(command)]
    for n, argument in enumerate(command.arguments, 1):
        place = "*" if argument.nargs in ("*", "+") else str(n)
        if argument.choices:
            action = f"({' '.join(argument.choices)})"
        elif argument.complete == "kinds":
            action = f"({' '.join(KINDS)})"
        elif argument.complete == "pods" and n > 1:
            action = "{_tinyedge_objects}"
        elif argument.complete in ("", "files"):
            action = "_files" if argument.complete else ""
        else:
            action = f"{{_tinyedge_names {argument.complete}}}"
        specs.append(f"'{place}:{_quoted(argument.name)}:{action}'")
    return f"        {command.name}) _arguments -s " + " ".join(specs) + " ;;"


def _zsh_option(option: Option) -> str:
    if option.choices:
        value = f":{option.value.lower()}:({' '.join(option.choices)})"
    else:
        value = f":{option.value.lower()}:_files" if option.value in ("PATH", "FILE") else f":{option.value.lower()}:"
    flags = "{" + ",".join(option.flags) + "}" if len(option.flags) > 1 else option.flags[0]
    many = "'*'" if option.many else ""
    return f"{many}{flags}'[{_quoted(option.help)}]{value if option.value else ''}'"


def _quoted(text: str) -> str:
    """Safe within single quotes and within a zsh spec."""
    return text.replace("'", "'\\''").replace(":", ";").replace("[", "(").replace("]", ")")


def fish() -> str:
    return "\n".join(["# fish completion for tinyedge", *_fish_lines()])


def _fish_lines() -> Iterator[str]:
    yield "function __tinyedge_names"
    yield "    tinyedge get $argv[1] -o name 2>/dev/null | string replace -r '^[^/]*/' ''"
    yield "end"
    yield "complete -c tinyedge -f"
    for command in COMMANDS:
        help_text = command.help.replace("'", "\\'")
        yield f"complete -c tinyedge -n __fish_use_subcommand -a {command.name} -d '{help_text}'"
    for command in COMMANDS:
        condition = f"-n '__fish_seen_subcommand_from {command.name}'"
        for option in _options(command):
            yield f"complete -c tinyedge {condition} {_fish_option(option)}"
        yield from _fish_arguments(command, condition)


def _fish_arguments(command: Command, condition: str) -> Iterator[str]:
    words = " ".join(_words(command))
    first = command.arguments[0].complete if command.arguments else ""
    if words:
        yield f"complete -c tinyedge {condition} -a '{words}'"
    elif first == "files":
        yield f"complete -c tinyedge {condition} -F"
    elif first:
        yield f"complete -c tinyedge {condition} -a '(__tinyedge_names {first})'"
    if command.name == "device":
        behind = f"-n '__fish_seen_subcommand_from device; and __fish_seen_subcommand_from {words}'"
        yield f"complete -c tinyedge {behind} -a '(__tinyedge_names devices)'"


def _fish_option(option: Option) -> str:
    words = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags]
    if option.choices:
        words.append(f"-x -a '{' '.join(option.choices)}'")
    elif option.value:
        words.append("-r -F" if option.value in ("PATH", "FILE") else "-x")
    help_text = option.help.replace("'", "\\'")
    return " ".join([*words, f"-d '{help_text}'"])
