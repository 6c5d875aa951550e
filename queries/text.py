"""Words on their way to a terminal: nothing in them may steer it, and errors are one sentence."""

from __future__ import annotations

import re

#: What a terminal may take for a command, or shows out of order: C0 and C1 controls, line separators,
#: invisible marks, and the bidirectional overrides that make `gpj.exe` read as `exe.jpg`.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def escape_controls(text: str) -> str:
    """text with everything that could steer a terminal as \\n, \\x1b, \\u202e, ..."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


#: How DuckDB and Arrow name a part of RESULTS that they can't open any more.
_GONE = re.compile(r"(?:Cannot access file|Cannot open file|No files found|No such file|does not exist).*/part-", re.S)


def one_sentence(error: Exception) -> str:
    """DuckDB's or Arrow's message without the quoted SQL and the call trace under it."""
    if _GONE.search(str(error)):
        return "a file of the results is gone since they were opened, most likely merged by `compact`: ask again."
    text = str(error).split("\n\n")[0].split("\nLINE ")[0]
    return escape_controls(" ".join(line.strip() for line in text.splitlines()))
