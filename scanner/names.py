"""Names: which files below a source are taken, by extension, hidden files, globs, include and exclude; the user's."""

from __future__ import annotations

import fnmatch
import getpass
import os
import re
from collections.abc import Callable, Sequence

VIDEO_EXTENSIONS = frozenset(  # lower case, without the dot
    {"mp4", "m4v", "mov", "mkv", "webm", "avi", "ts", "m2ts", "mts"}
    | {"mpg", "mpeg", "mxf", "wmv", "flv", "3gp", "ogv"}
)

Wanted = Callable[[str], bool]


def has_video_extension(name: str) -> bool:
    return name.rpartition(".")[2].lower() in VIDEO_EXTENSIONS and "." in name


def is_listed(path: str) -> bool:
    """Whether a scan of a folder takes this path below it: a video by its name, nothing on the way hidden."""
    return has_video_extension(path) and not any(name.startswith(".") for name in path.split("/"))


def name_filter(include: Sequence[str], exclude: Sequence[str]) -> Wanted:
    """Whether a path below its source is wanted: fnmatch patterns, tried on the path and its last part."""
    takes = [re.compile(fnmatch.translate(pattern)) for pattern in include]
    drops = [re.compile(fnmatch.translate(pattern)) for pattern in exclude]

    def wanted(path: str) -> bool:
        name = path.rpartition("/")[2]

        def hit(patterns: list[re.Pattern[str]]) -> bool:
            return any(pattern.match(path) or pattern.match(name) for pattern in patterns)

        return (not takes or hit(takes)) and not hit(drops)

    return wanted


def is_glob(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def glob_match(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether path components match pattern components; `**` stands for any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(glob_match(names[start:], pattern[1:]) for start in range(len(names), -1, -1))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and glob_match(names[1:], pattern[1:])


def glob_root(path: str) -> tuple[str, list[str]]:
    """(folder without wildcards, pattern components below it)."""
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if is_glob(part))
    return "/".join(parts[:first]) or "/", parts[first:]


def login_name() -> str:
    """The user's login name, or number where there is no name for it, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
