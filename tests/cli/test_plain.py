"""No terminal obeys what a stranger wrote."""

import json as standard

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from hubbub.cli import main
from hubbub.cli.plain import cell, console, json, plain

HOSTILE = "\x1b[2K\x9b31mred\r\u202eback \u2066\U000e0041 [bold]é 世界"


def test_what_a_terminal_would_obey_is_written_out():
    assert plain(HOSTILE) == ("\\u001b[2K\\u009b31mred\\u000d\\u202eback \\u2066\\udb40\\udc41 [bold]é 世界")


@given(st.text())
def test_everything_that_is_shown_is_printable(text):
    assert plain(text).replace("\n", "").isprintable() or plain(text) in {"", "\n"}


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_reads_the_same_whatever_is_written_out(value):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        json(value)
    assert standard.loads(out.getvalue()) == standard.loads(standard.dumps(value))
    assert out.getvalue().replace("\n", "").isprintable()


def test_markup_in_a_cell_is_text():
    table = Table("word")
    table.add_row(cell("[red]no[/] [/nothing]"))
    console = Console(width=60)
    with console.capture() as captured:
        console.print(table)
    assert "[red]no[/] [/nothing]" in captured.get()


def test_an_error_is_told_without_what_a_terminal_obeys(capsys):
    assert main(["verify", "no\x1b[31msuch\x9b"]) == 2
    told = capsys.readouterr().err
    assert "\\u001b" in told or "'no" not in told
    assert "\x1b" not in told
    assert "\x9b" not in told


def test_what_goes_into_a_pipe_is_not_wrapped_and_columns_are_kept_to(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    console().print("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1
    monkeypatch.setenv("COLUMNS", "50")
    console().print("word " * 100)
    assert capsys.readouterr().out.count("\n") == 10
