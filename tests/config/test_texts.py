"""Names that others gave: what a site may be called, and that no name is a formula, a markup or HTML where it is shown."""

import csv
import io
import unicodedata

import pytest

from relay_core.experiments.report import Outcome, report_markdown
from relay_core.inference.measurements import class_header, write_table
from relay_core.metrics import ScoreMatrix, compare_markdown
from relay_core.metrics.figures import write_matrix
from relay_core.metrics.matrix import table_row
from relay_core.texts import csv_table, markdown, site_name

FORMULAS = [
    "=1+1",
    "+cmd|'/C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\uff1d1+1",
    '=HYPERLINK("http://x";"y")',
]
MARKUP = [
    "[x](http://evil)",
    "![x](y)",
    "<img src=x>",
    "`code`",
    "a|b",
    "**b**",
    "_i_",
    "www.evil.org",
    "# x",
    "a\n\n# b",
    "$x$",
]


@pytest.mark.parametrize(
    "name", ["North", "St. Example (2)", "Zürich", "Ελλάδα", "東京 3", "مستشفى", "हिन्दी", "a_b-c", "7. Klinik", "é" * 100]
)
def test_a_site_is_called_by_letters_of_any_language(name):
    assert site_name(name) == unicodedata.normalize("NFC", name)
    assert site_name(unicodedata.normalize("NFD", name)) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("", "this one has 0"), ("x" * 101, "this one has 101"), ("north ", "ends in a space"), (" north", "U+0020"),
        *((f"a{c}", f"U+{ord(c):04X}") for c in "=+@/\\|<>&\"'`*[]{}#$%:;,!?~^\t\r\n\0\x1b\u202e\u200b²😀"),
        *((f"{c}a", f"U+{ord(c):04X}") for c in "-=_.(\u0301"),
        ("a \u0301", "U+0301"),
    ],
)  # fmt: skip
def test_what_else_is_in_a_name_is_named(name, culprit):
    with pytest.raises(ValueError, match="letters of any language") as caught:
        site_name(name)
    assert culprit in str(caught.value)


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_of_a_table_is_a_formula(tmp_path, name):
    matrix = ScoreMatrix([name], [name, "b"], "dice_per_sample", [[-0.5, None]])
    write_table(tmp_path / "a.csv", class_header([name]), [[name, "-1.5", "+2", "-1e-3"]])
    for text in (csv_table([[name, -1]]), matrix.to_csv(), (tmp_path / "a.csv").read_bytes().decode()):
        cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
        assert any(cell.endswith(name) for cell in cells)
        assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r\n\uff1d")) and not _number(cell)]
    assert "-0.5" in matrix.to_csv()
    assert "-1.5,+2,-1e-3" in (tmp_path / "a.csv").read_text()


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", MARKUP)
def test_no_name_is_markup_in_a_report(name):
    matrix = ScoreMatrix([name], [name, "b"], "dice_per_sample", [[0.5, 0.25]])
    outcomes = [Outcome(name, seed, {"dice_per_sample": matrix}, 1.0) for seed in (0, 1)]
    texts = [matrix.to_markdown(), compare_markdown({name: matrix}), report_markdown(outcomes, name), markdown(name)]
    for text in texts:
        assert markdown(name) in text
        plain = text.replace(markdown(name), "")
        assert " ".join(name.split()) not in plain
    assert not any(markdown(name).startswith(c) for c in "#[!<`*|")
    assert table_row([markdown(name)]).count("|") - table_row([markdown(name)]).count("\\|") == 2


def test_what_markdown_makes_of_names():
    assert markdown("Site_1 (A-b.c)") == "Site_1 (A-b.c)"
    assert markdown("a|b <b> _x_") == "a\\|b &lt;b&gt; \\_x\\_"
    assert markdown("x\x1b[2J\ny") == "x?\\[2J y"
    assert markdown("http://e.org www.e.org") == "http\\://e.org www\\.e.org"
    assert [markdown(text) for text in ("- a", "+ a", "1. a")] == ["\\- a", "\\+ a", "1\\. a"]


def test_a_name_with_dollars_is_drawn_as_it_is(tmp_path):
    name = r"$\frac$"
    write_matrix(ScoreMatrix([name], [name], "dice_per_sample", [[0.5]]), tmp_path, "m")
    assert (tmp_path / "m.png").stat().st_size > 0
