"""The page's words stand in the catalogue of each language, and nothing else does."""

import json
import re
from pathlib import Path

import pytest

from services.api.site_page import FOLDER

CALL = re.compile(r'\bt\(\s*"((?:[^"\\]|\\.)*)"')
LANGUAGES = sorted((FOLDER / "text").glob("*.json"))


def scripts() -> list[Path]:
    return [path for path in FOLDER.rglob("*.js") if "vendor" not in path.parts]


def words() -> set[str]:
    return {json.loads(f'"{text}"') for path in scripts() for text in CALL.findall(path.read_text())}


def test_there_are_words_and_a_second_language():
    assert len(words()) > 300
    assert [path.stem for path in LANGUAGES] == ["de"]


@pytest.mark.parametrize("path", LANGUAGES, ids=lambda path: path.stem)
def test_a_language_says_everything_and_keeps_the_values(path):
    catalogue = json.loads(path.read_text())
    assert set(catalogue) == words()
    for text, translated in catalogue.items():
        assert translated.strip(), text
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", translated)), text


def test_only_texts_of_the_catalogue_are_said():
    for path in scripts():
        calls = len(re.findall(r"\bt\(", path.read_text())) - len(re.findall(r"function t\(", path.read_text()))
        assert calls == len(CALL.findall(path.read_text())), f"{path.name} says something that is no literal"


def test_nothing_reads_markup_from_text():
    for path in scripts():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", path.read_text()
        ), path
