"""Every `postlane …` in the documentation is one that the real command line takes."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from postlane.cli.main import main
from tests.docs.pages import Page, command_lines, pages, read, split, words

PAGES = [page for page in pages() if any(True for _ in command_lines(page))]
LOOSE = re.compile(r"[|…<>\[\]()]|\.\.\.")


@pytest.fixture(autouse=True)
def _no_files_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line is parsed, not run: the files that it names need not be there."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, parameter, context: Path(str(value)))
    monkeypatch.setattr(click.File, "convert", lambda self, value, parameter, context: value)


def refused(text: str, whole: bool) -> str | None:
    """What the parser has against it, None when it takes it."""
    if not whole and LOOSE.search(text):
        return loosely(text)
    try:
        given = [_filled(word) for word in words(text)][1:]
        context = main.make_context("postlane", given)
        _descend(main, context)
    except click.exceptions.Exit:
        return None  # --help, --version
    except click.UsageError as error:
        if not whole and isinstance(error, click.MissingParameter | click.exceptions.NoArgsIsHelpError):
            return None  # named in passing, e.g. `postlane send`
        return error.format_message()
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _descend(group: click.Command, context: click.Context) -> None:
    """What invoking would do, short of calling the command."""
    while isinstance(group, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, rest = group.resolve_command(context, rest)
        assert command is not None
        context = command.make_context(name, list(rest), parent=context)
        group = command


def _filled(word: str) -> str:
    """A placeholder or a variable as something that the parser takes."""
    word = re.sub(r"\$\(.*\)|\$\{?\w+\}?", "7", word)
    return {"TIME": "2026-01-31T09:00:00Z", "N": "5", "DIR": "/tmp/x"}.get(word, word)


def loosely(text: str) -> str | None:
    """With alternatives or things left out: the command and the options that it names must be there."""
    plain = [w.strip("[](),.…|`") for w in re.split(r"[\s|=]+", re.sub(r"[\[\]()]", " ", text)) if w.strip("[](),.…|`")]
    command: click.Command = main
    context = click.Context(main)
    for word in plain[1:]:
        if word.startswith("-"):
            names = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
            if word.split("=")[0] not in names:
                return f"no option {word} of {command.name}"
        elif isinstance(command, click.Group):
            found = command.get_command(context, word)
            if found is None and word.islower() and command is main:
                return f"no command {word}"
            if found is not None and not (command is not main and "|" in text):
                command = found
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_those_of_the_parser(page: Page) -> None:
    wrong = []
    for line, text, whole in command_lines(page):
        why = refused(text, whole)
        if why is not None:
            wrong.append(f"line {line}: {text}: {why}")
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("postlane sned --from a@b.example", True),
        ("postlane send --fron a@b.example", True),
        ("postlane dead-letters lst", True),
        ("postlane dead-letters list --reazon policy", True),
        ("postlane pause --lane bulk --because x", False),
        ("postlane (pause|resume) --lain bulk", False),
        ("postlane stauts [MESSAGE_ID]", False),
        ("postlane replay --rate fast", True),
    ],
)
def test_a_command_that_rots_is_noticed(text: str, whole: bool) -> None:
    assert refused(text, whole) is not None


def test_where_commands_are_found(tmp_path: Path) -> None:
    assert split("ID=$(postlane send --from 'a; b' --to x) && postlane status $ID | head -3") == [
        "postlane send --from 'a; b' --to x",
        "postlane status $ID",
    ]
    assert split("while ! postlane status; do sleep 1; done  # postlane nothing") == ["postlane status"]
    page = tmp_path / "x.md"
    page.write_text(
        '`postlane up`\n\n<!-- run says="a b" exit=1 -->\n```console\n$ postlane status \\\n  --json\nout\n```\n'
    )
    found = [(text, whole) for _, text, whole in command_lines(read(page))]
    assert found == [("postlane status    --json", True), ("postlane up", False)]
    assert read(page).runnable()[0].mark == {"says": "a b", "exit": "1"}
