"""The text files of tests/scenarios give the steps that stand in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.scenario import parse, play

FOLDER = Path(__file__).resolve().parent.parent / "scenarios"
FILES = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario_gives_the_steps_that_stand_in_it(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text()
    now = play(text)
    if request.config.getoption("--rewrite"):
        path.write_text(now)
        return
    assert now == text, f"{path.name} gives other steps: pytest --rewrite, then read the difference"


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 8


def test_a_wrong_answer_in_a_scenario_is_noticed() -> None:
    text = FILES[0].read_text()
    commands, _ = parse(text)
    wrong = next(line for command in commands for line in command.expected)
    assert play(text.replace(wrong, "Nothing happens", 1)) != text.replace(wrong, "Nothing happens", 1)
