"""The prompt of `deepsweep query --shell`: lines to questions, with history and completion."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from queries.run import NamedQuery, view_titles
from queries.text import escape_controls
from scanner.errors import UserError

if TYPE_CHECKING:
    import duckdb

PROMPT = "deepsweep> "
MORE = "      ...> "

#: Rows that the prompt shows of an answer. Nobody reads more, and `FROM frames` may have millions.
MOST_ROWS = 1000

HISTORY_LINES = 1000

HELP = """\
SQL, over as many lines as it takes, ends with ;
A named query is asked by its name, with parameters behind it: clips limit=5 uri='*/2024/*'
.views          the views, and what a row of each is
.schema VIEW    the columns of a view
.queries        the named queries and their parameters
.help           this
.quit           leave; so does Ctrl-D. Ctrl-C drops what was typed, or stops a question
"""

COMMANDS = (".help", ".queries", ".quit", ".schema", ".views")
_BARE = {"help": ".help", "quit": ".quit", "exit": ".quit"}

#: One piece of SQL: what quotes and comments hold is one piece, and a ; in it ends nothing.
_PIECE = re.compile(
    r"""
      (?P<comment> --[^\n]*(?:\n|\Z) | /\*.*?\*/ )
    | (?P<blank> \s+ )
    | (?P<end> ; )
    | (?P<code> (?<!\w)[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
              | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$ | \w+ | [^'"] )
    """,
    re.VERBOSE | re.DOTALL,
)


def split_statements(text: str) -> tuple[list[str], str]:
    """(statements that a ; ended, without it; what stands behind the last of them).

    The rest is "" when it holds nothing but blanks and finished comments.
    """
    done, start, code, position = [], 0, False, 0
    while position < len(text):
        piece = _PIECE.match(text, position)
        opens = text.startswith("/*", position)
        if piece is None or (opens and piece.lastgroup != "comment"):
            return done, text[start:]  # a quote or comment that is still open
        position = piece.end()
        if piece.lastgroup == "end":
            done += [text[start : position - 1].strip()] if code else []
            start, code = position, False
        else:
            code = code or piece.lastgroup not in ("comment", "blank")
    return done, text[start:] if code else ""


def named_call(text: str, names: Iterable[str]) -> tuple[str, dict[str, str]] | None:
    """(name, parameters) of `clips limit=5 uri='a b'`; None for anything else, SQL above all."""
    try:
        name, *rest = shlex.split(text)
    except ValueError:  # an open quote, or nothing at all
        return None
    pairs = [word.partition("=") for word in rest if word != "-p"]
    if name not in names or not all(equals and re.fullmatch(r"\w+", key) for key, equals, _ in pairs):
        return None
    return name, {key: value for key, _, value in pairs}


@dataclass(frozen=True)
class Words:
    """What Tab offers. columns: those of each view; params: those of each named query."""

    columns: dict[str, list[str]]
    params: dict[str, list[str]]

    def completions(self, before: str, word: str) -> list[str]:
        """What word may become, in order. before: the line up to it."""
        head, dot, _ = word.rpartition(".")
        first = before.split(maxsplit=1)[0] if before.strip() else ""
        if not first and word.startswith("."):
            candidates: Iterable[str] = COMMANDS
        elif first == ".schema":
            candidates = self.columns
        elif first in self.params:
            candidates = (f"{param}=" for param in self.params[first])
        elif dot:
            of_view = self.columns.get(head) or self._all_columns()  # head may be an alias
            candidates = (f"{head}.{column}" for column in of_view)
        else:
            candidates = [*([] if first else self.params), *self.columns, *self._all_columns()]
        return sorted({c for c in candidates if c.lower().startswith(word.lower())})

    def _all_columns(self) -> list[str]:
        return [column for columns in self.columns.values() for column in columns]


class Shell:
    """Takes lines, asks what they make up. ask(question, parameters) prints the answer or raises UserError."""

    def __init__(self, words: Words, queries: Sequence[NamedQuery], ask: Callable[[str, dict[str, str]], None]) -> None:
        self.words = words
        self.queries = queries
        self.ask = ask
        self.pending = ""

    def feed(self, line: str) -> bool:
        """Take a line; False when it was the last one that is wanted. Raises UserError; nothing is pending then."""
        word = line.strip().removesuffix(";").strip()
        if not self.pending and _BARE.get(word.lower(), word).startswith("."):
            return self._command(_BARE.get(word.lower(), word))
        if not self.pending and named_call(word, self.words.params):
            self._ask(word)
            return True
        statements, rest = split_statements(f"{self.pending}{line}\n")
        self.pending = ""
        for statement in statements:
            self._ask(statement)
        self.pending = rest
        return True

    def finish(self) -> None:
        """Ask what is pending: the last statement of a file needs no semicolon."""
        rest, self.pending = self.pending.strip(), ""
        if rest:
            self._ask(rest)

    def _ask(self, text: str) -> None:
        name, params = named_call(text, self.words.params) or (text, {})
        self.ask(name, params)

    def _command(self, text: str) -> bool:
        name, *rest = text.split()
        if name == ".quit":
            return False
        if name == ".help":
            click.echo(HELP, nl=False)
        elif name == ".views":
            titles = view_titles()
            click.echo("\n".join(f"{view:<12} {titles.get(view, '')}".rstrip() for view in self.words.columns))
        elif name == ".queries":
            from queries.command import listing

            click.echo(listing(self.queries))
        elif name != ".schema":
            raise UserError(f"There is no command {name}. There are: {', '.join(COMMANDS)}.")
        elif len(rest) != 1 or rest[0] not in self.words.columns:
            raise UserError(f".schema takes a view: {', '.join(self.words.columns)}.")
        else:
            self.ask(f'SELECT column_name, column_type FROM (DESCRIBE "{rest[0]}")', {})
        return True


def run_shell(connection: duckdb.DuckDBPyConnection, queries: Sequence[NamedQuery], ask: Callable[..., None]) -> None:
    """Read questions from stdin until it ends: at a prompt where a person sits there, else line by line.

    ask(question, parameters, most=rows) prints an answer or raises UserError. At the prompt an error is shown and
    the next question awaited; in a pipe or a file it ends the reading, and is raised.
    """
    words = Words(_columns(connection), {query.name: [p.name for p in query.params] for query in queries})
    if sys.stdin.isatty() and sys.stdout.isatty():
        shell = Shell(words, queries, lambda question, params: ask(question, params, most=MOST_ROWS))
        with _line_editing(words):
            _converse(shell)
        return
    shell = Shell(words, queries, ask)
    try:
        for line in sys.stdin:
            if not shell.feed(line.rstrip("\n")):
                return
    except UnicodeDecodeError:
        raise UserError("The questions are not UTF-8 text.") from None
    shell.finish()


def _columns(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """Columns of each view, in the order in which they were made."""
    rows = connection.execute(
        "SELECT table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() "
        "WHERE schema_name = 'main' AND NOT internal GROUP BY table_name"
    ).fetchall()
    columns = dict(rows)
    known = [view for view in view_titles() if view in columns]
    return {view: columns[view] for view in [*known, *sorted(columns.keys() - set(known))]}


def _converse(shell: Shell) -> None:
    click.echo("SQL ends with ;  .help tells more  Ctrl-D leaves", err=True)
    while True:
        try:
            if not shell.feed(input(MORE if shell.pending else PROMPT)):
                return
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            shell.pending = ""
            click.echo()
        except UserError as error:
            click.echo(escape_controls(str(error)), err=True)


@contextlib.contextmanager
def _line_editing(words: Words) -> Iterator[None]:
    """input() with history and completion, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    matches: list[str] = []

    def complete(word: str, state: int) -> str | None:
        if state == 0:
            matches[:] = words.completions(readline.get_line_buffer()[: readline.get_begidx()], word)
        return matches[state] if state < len(matches) else None

    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    readline.set_completer_delims(" \t\n,;()=<>'\"+*/")
    readline.set_completer(complete)
    history = history_file()
    with contextlib.suppress(OSError):  # a home that can't be written to must not keep anyone from asking
        history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        history.touch(mode=0o600)
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(history)


def history_file() -> Path:
    """Where the prompt remembers: the user's state folder, as the XDG base directory specification has it."""
    given = os.environ.get("XDG_STATE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state") / "deepsweep" / "history"
