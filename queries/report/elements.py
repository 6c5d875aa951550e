"""HTML out of elements: text is escaped by the only function that makes markup, and nothing can run."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable
from typing import TypeAlias

from queries.text import escape_controls


class Markup(str):
    """Text that is HTML already. Only this module makes it."""

    __slots__ = ()


#: What an element may hold: text, which is escaped, elements, and lists of them. None is nothing.
Child: TypeAlias = "str | int | Markup | Iterable[Child] | None"
Attribute: TypeAlias = "str | int | float | bool | None"

_VOID = frozenset({"meta", "input", "img", "br"})
_TAG = re.compile(r"[a-zA-Z][a-zA-Z0-9]*")
_ATTRIBUTE = re.compile(r"[a-zA-Z][a-zA-Z-]*")
_JPEG_START = b"\xff\xd8\xff"


def el(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """One element. Underscores in the names of attributes become dashes, a last one is dropped: class_, aria_label.

    True is an attribute without a value; None and False are left out. Raises ValueError for an attribute that
    could run or load something: on*, style, a src that is not of jpeg_uri, an href that leaves the page.
    """
    if not _TAG.fullmatch(tag):
        raise ValueError(f"{tag!r} is no tag")
    start = "".join(_attribute(name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{start}>")
    return Markup(f"<{tag}{start}>{join(children)}</{tag}>")


def join(children: Child) -> Markup:
    """Children one after the other."""
    if children is None:
        return Markup()
    if isinstance(children, Markup):
        return children
    if isinstance(children, str | int):
        return Markup(html.escape(escape_controls(str(children))))
    return Markup("".join(map(join, children)))


def code(tag: str, source: str) -> tuple[Markup, str]:
    """A <style> or <script> that holds source as it is, and the hash that a Content-Security-Policy names it by."""
    if tag not in ("style", "script") or "</" in source or "<!--" in source:
        raise ValueError(f"this cannot stand in a <{tag}>")
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return Markup(f"<{tag}>{source}</{tag}>"), f"'sha256-{digest}'"


def jpeg_uri(image: bytes | None) -> Markup | None:
    """The picture as an address that needs no request, for `src`; None where it is not a JPEG."""
    if image is None or not image.startswith(_JPEG_START):
        return None
    return Markup("data:image/jpeg;base64," + base64.b64encode(image).decode("ascii"))


def document(*children: Child) -> str:
    """A whole page."""
    return "<!DOCTYPE html>\n" + el("html", *children, lang="en") + "\n"


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    if not _ATTRIBUTE.fullmatch(name) or name.lower().startswith("on") or name == "style":
        raise ValueError(f"an element has no attribute {name!r} here")
    if (name == "src" and not isinstance(value, Markup)) or (name == "href" and not str(value).startswith("#")):
        raise ValueError(f"{name} must not lead out of the page")
    if value is True:
        return f" {name}"
    return f' {name}="{value if name == "src" else join(str(value))}"'
