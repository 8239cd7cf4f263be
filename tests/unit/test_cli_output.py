"""Texts of strangers reach a terminal as texts, and cells stand under their own headings."""

from __future__ import annotations

import io
import re

import numpy as np
import pyarrow as pa
import pytest
from rich.text import Text

from annheal.cli.output import Output, OutputFormat, PlainConsole, cell, printable, table
from annheal.cli.user_commands.records import render_records
from annheal.client import Records
from annheal.model.records import RecordSet

TITLE = "\x1b]0;renamed\x07"
HOSTILE = (TITLE, "a\x9b2J", "tab\tand\rback\b", "left\u202etfel", "line\u2028end", "\x7f", "a\nb")
STYLE = re.compile(r"\x1b\[[0-9;]*m")
STEERING = set("\x1b\x07\x9b\r\b\u202e\u2028\x7f\t")


@pytest.mark.parametrize("text", HOSTILE)
def test_what_steers_a_terminal_is_shown_instead(text: str) -> None:
    for shown in (printable(text), cell(text).plain):
        assert not STEERING & set(shown)
        assert "\n" not in shown
    # However a command prints it: as it is, as markup, in a table, as its title.
    for renderable in (text, Text(text), table([text], [[text]], title=text), table(["A"], [[1]])):
        buffer = io.StringIO()
        PlainConsole(file=buffer, force_terminal=True, width=200).print(renderable)
        written = buffer.getvalue()
        assert TITLE not in written
        assert not STEERING & set(STYLE.sub("", written))


def test_ordinary_text_is_left_alone() -> None:
    for text in ("plain", "żółć", "日本語", "👩‍🔬", "a  b", "نص"):
        assert printable(text) == text
        assert cell(text).plain == text


def test_ids_that_differ_look_different() -> None:
    assert len({cell(text).plain for text in ("a b", "a  b", "a\nb", "a\tb", " a b")}) == 5


def test_styles_of_our_own_reach_the_terminal() -> None:
    buffer = io.StringIO()
    PlainConsole(file=buffer, force_terminal=True).print(Text("bold", style="bold"))
    assert "\x1b[1mbold\x1b[0m" in buffer.getvalue()


def test_notes_and_results_use_such_consoles() -> None:
    output = Output(OutputFormat.TABLE)
    assert isinstance(output.console, PlainConsole)
    assert isinstance(output.errors, PlainConsole)


def test_vectors_stand_under_their_heading_where_payloads_are_missing() -> None:
    columns = RecordSet(
        ["with", "without"],
        payloads=pa.array([b'{"a":1}', None], type=pa.binary()),
        vectors=np.ones((2, 3), dtype=np.float32),
    )
    buffer = io.StringIO()
    PlainConsole(file=buffer, width=120).print(render_records(Records(columns)))
    heading, with_payload, without = buffer.getvalue().splitlines()
    assert heading.index("VECTOR") == with_payload.index("[1.0000") == without.index("[1.0000")
    assert without[heading.index("PAYLOAD")] == "-"
