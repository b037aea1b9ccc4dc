"""The documents tell the truth about the code."""

from __future__ import annotations

from tests import docs
from tinyedge import config


def test_the_configuration_page_is_what_the_code_says() -> None:
    assert docs.CONFIGURATION.read_text() == docs.configuration(), "run: make docs"


def test_every_configuration_key_is_described() -> None:
    assert [key for key, _, words in config.described() if not words] == []
