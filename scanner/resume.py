"""What need not be scanned again: the anti-join of an inventory with the results."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from queries.catalog import ask_catalog
from scanner.pipeline import Todo
from scanner.results import FAILED, listed
from scanner.sources import Video

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_DONE = """
    SELECT uri, content_tag, span_count, list(span_index) FILTER (NOT list_contains($retry, status))
    FROM spans WHERE model_digest = $model AND settings_digest = $settings
    GROUP BY ALL
"""


@dataclass(frozen=True)
class _Spans:
    count: int
    done: tuple[int, ...]


class Done:
    """Which spans the views show already under this model and these settings.

    Only what the views show counts: rows that a later scan with another model superseded are scanned
    again when the first model comes back, or the views would go on showing the other's.
    """

    def __init__(self) -> None:
        self._spans: dict[bytes, _Spans | None] = {}

    @classmethod
    def load(cls, results: str, model_digest: str, settings_digest: str, *, retry_failed: bool) -> Done:
        """Read RESULTS; keeps a 16-byte key a video. retry_failed: failed spans don't count."""
        if not (listed(results, "runs/", ".json") or listed(results, "spans/", ".parquet")):
            return cls()
        parameters = {
            "retry": [status.value for status in FAILED] if retry_failed else [],
            "model": model_digest,
            "settings": settings_digest,
        }

        def read(catalog: DuckDBPyConnection) -> Done:
            done = cls()
            rows = catalog.execute(_DONE, parameters)
            while batch := rows.fetchmany(10_000):
                for uri, tag, count, indices in batch:
                    complete = len(indices or ()) >= count
                    done._spans[_key(uri, tag)] = None if complete else _Spans(count, tuple(indices or ()))
            return done

        return ask_catalog(results, read)

    def remaining(self, videos: Iterable[Video]) -> Iterator[Todo]:
        """The videos that are not done, each with those of its spans that are."""
        for video in videos:
            key = _key(video.uri, video.content_tag)
            if key not in self._spans or video.is_listing:  # nobody knows what is not listed, so it is never done
                yield Todo(video)
            elif (partly := self._spans[key]) is not None:
                yield Todo(video, frozenset(partly.done), partly.count)


def _key(uri: str, content_tag: str) -> bytes:
    return hashlib.blake2b(f"{uri}\0{content_tag}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
