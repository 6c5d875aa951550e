"""`deepsweep prepare`: labelled videos and pictures become face tracks on disk, ready for training."""

from __future__ import annotations

import itertools
import os
import pickle
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click

from queries.text import escape_controls
from scanner import errors
from scanner.errors import UserError
from scanner.labels import LABELS, LAYOUTS, Labelled, describe, detect_layout, find_labelled, join_groups
from scanner.progress import Progress
from scanner.uris import is_s3

if TYPE_CHECKING:  # loaded when work begins: `--help` must not wait for MediaPipe and Ray
    import ray.data

    from cluster.plan import Plan
    from scanner.extract import File
    from scanner.prepstore import Totals

FILES_PER_PART = {"video": 4, "image": 64}  # tens of MB on disk; what an interruption may cost
SHOWN_FAILURES = 20


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("--out", required=True, metavar="PREP", help="Folder that face tracks are added to.")
@click.option("--layout", type=click.Choice(list(LAYOUTS)), help="How DATA is laid out [default: found out].")
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    help="Take so much of each video, from its start.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many files that need preparing.")
@click.option(
    "--address", metavar="ADDRESS", help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT [default: start Ray here]."
)
@click.option("--retry-failed", is_flag=True, help="Prepare files again that failed before.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def prepare(data: tuple[str, ...], out: str, **options: Any) -> None:
    """Turn labelled videos and pictures into face tracks to train on.

    DATA is the folder of a data set. Its layout is found out, in this order: a manifest.csv (columns file,
    label, and optionally method, source, group); FaceForensics++; Celeb-DF; DeeperForensics-1.0; real/ and
    fake/ folders, whose subfolders are sources; DFDC with its metadata.json. A manifest of another name may
    stand for its folder.

    Faces are found and followed as a scan does it. The same command again prepares only what is new or
    changed; labels that have changed are corrected in what is there, and files that are gone from DATA stay.
    On a cluster, every node must see DATA and PREP under the same paths.

    \b
    Two data sets into one folder, the first minute of each video:
      deepsweep prepare /data/FaceForensics /data/Celeb-DF-v2 --out prep
    Only to see what comes out:
      deepsweep prepare /data/mine --out try --limit 20 --max-seconds 10
    Then:
      deepsweep train prep --out run

    \b
    Exit codes: 0 done, 2 usage, 3 some files failed, 4 Ray or resources, 5 nothing found, 130 interrupted.
    """
    code = run(data, out, **options)
    sys.exit(code)


def run(
    data: Sequence[str],
    out: str,
    *,
    layout: str | None = None,
    max_seconds: float = 60.0,
    limit: int | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    quiet: bool = False,
) -> int:
    """Prepare data sets and return the exit code. Raises UserError before anything is prepared."""
    from scanner import prepstore

    files = list_files(data, layout, tell=None if quiet else _say)
    if not files:
        raise UserError(
            f"nothing to prepare: no labelled video or picture in {' '.join(data)}.", errors.EXIT_NOTHING_TO_SCAN
        )
    with prepstore.locked(out) as prep:
        todo = prepstore.remaining(prep, files, retry_failed=retry_failed)[:limit]
        prepstore.settle(prep, files, todo)
        if not todo:
            if not quiet:
                _say(f"nothing new: {len(files):,} files are done already in {out} (--retry-failed takes failed ones).")
            return errors.EXIT_OK
        progress = _Progress(len(todo), quiet)
        with progress:
            interrupted = _work(todo, prep, max_seconds, address, progress)
        if not quiet:
            _print_summary(prepstore.totals(prep), out, progress, interrupted)
    if interrupted:
        return errors.EXIT_INTERRUPTED
    return errors.EXIT_SOME_FAILED if progress.failures else errors.EXIT_OK


def list_files(
    data: Sequence[str], layout: str | None = None, tell: Callable[[str], object] | None = None
) -> dict[str, File]:
    """The labelled files of all data sets by uri, in order. Raises UserError.

    tell: called with a line on each data set.
    """
    found: list[Labelled] = []
    typed = {folder if is_s3(folder) else os.path.abspath(folder): folder for folder in data}  # noqa: PTH100  as labels
    folders: dict[str, str] = {}
    for folder in typed.values():
        kind = layout or detect_layout(folder)
        here = find_labelled(folder, kind)
        name = here[0].uri.partition("/")[0] if here else folder
        if folders.setdefault(name, folder) != folder:
            raise UserError(
                f"{folders[name]} and {folder} would both be called {name} in the prepared data: give one of them"
                " through a link of another name."
            )
        if tell:
            tell(f"{folder}: {describe(here, kind)}")
        found += here
    files: dict[str, File] = {}
    for item in join_groups(found):  # once more, for people who are in several of the data sets
        if item.uri in files:
            raise UserError(f"two files would be called {item.uri} in the prepared data: rename one.")
        files[item.uri] = _file(item)
    return files


def _file(item: Labelled) -> File:
    from scanner.extract import File

    try:
        info = os.stat(item.path)  # noqa: PTH116  text: Path costs 10x per file
    except (OSError, ValueError) as error:
        return File(item, "", None, f"could not be read: {getattr(error, 'strerror', None) or error}")
    if not stat.S_ISREG(info.st_mode):
        return File(item, "", None, "is not a file")
    return File(item, f"{info.st_size}-{info.st_mtime_ns}", info.st_size)


# --- the pipeline -----------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How one file ended."""

    uri: str
    status: str
    error: str | None
    crops: int


class Extract:
    """A part's files → its rows, as Parquet, by a child process that may be killed at any time."""

    def __init__(self, max_seconds: float) -> None:
        from scanner.extract import PRELOAD
        from scanner.guard import Guard

        self.max_seconds = max_seconds
        self.guard = Guard(preload=PRELOAD)
        self.guard.warm_up()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from scanner.extract import file_rows
        from scanner.prepstore import part_bytes, part_name

        files: list[File] = pickle.loads(row["files"])
        rows = [file_rows(file, self.guard, self.max_seconds) for file in files]
        outcomes = [Outcome(of[0]["uri"], of[0]["status"], of[0]["error"], sum(len(r["t"]) for r in of)) for of in rows]
        data = part_bytes(list(itertools.chain.from_iterable(rows)))
        return {"name": part_name(files), "data": data, "outcomes": pickle.dumps(outcomes)}


class Write:
    """A part → disk, whole or not at all; passes on only what the driver counts."""

    def __init__(self, prep: Path) -> None:
        self.prep = prep

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from scanner.prepstore import write_part

        write_part(self.prep, row["name"], row["data"])
        return {"outcomes": row["outcomes"]}


def parts_of(todo: Sequence[File]) -> Iterator[list[File]]:
    """Files that are written together: neighbours of one kind."""
    for kind, files in itertools.groupby(todo, key=lambda file: file.item.kind):
        while part := list(itertools.islice(files, FILES_PER_PART[kind])):
            yield part


def _work(todo: Sequence[File], prep: Path, max_seconds: float, address: str | None, progress: _Progress) -> bool:
    """Run the pipeline to its end; whether the user interrupted it. Raises UserError where Ray breaks."""
    from ray.exceptions import RayError

    from cluster.connect import connect, disconnect
    from cluster.plan import make_plan
    from scanner.scan import root_cause, set_up_ray_data, sigterm_interrupts

    progress.phase = "starting"
    with sigterm_interrupts():
        try:
            resources = connect(address, gpus=0)
            plan = make_plan(resources.cpus, 0, resources.nodes)
            set_up_ray_data()
            for row in _dataset(todo, prep, max_seconds, plan).iter_rows():
                progress.take(pickle.loads(row["outcomes"]))
        except KeyboardInterrupt:
            return True
        except (RayError, ConnectionError) as error:
            raise UserError(
                f"preparing broke off: {root_cause(error)}. What was finished is kept in {prep};"
                " the same command goes on from there.",
                errors.EXIT_PREFLIGHT,
            ) from None
        finally:
            disconnect()
    return False


def _dataset(todo: Sequence[File], prep: Path, max_seconds: float, plan: Plan) -> ray.data.Dataset:
    """The work as a lazy, streaming dataset: a block and a row for each part; reading its rows runs it."""
    import ray.data

    parts = [{"files": pickle.dumps(part)} for part in parts_of(todo)]
    pool = ray.data.ActorPoolStrategy(size=min(plan.analyzers, len(parts)), max_tasks_in_flight_per_actor=2)
    extract = {**plan.analyze, "compute": pool}  # no more actors than parts: Ray would warn of them
    write = {name: value for name, value in plan.sink.items() if name != "batch_size"}  # a part is a batch already
    # Ray's types know classes in map_batches only.
    return (
        ray.data.from_items(parts, override_num_blocks=len(parts))
        .map(cast(Any, Extract), fn_constructor_args=(max_seconds,), **extract)
        .map(cast(Any, Write), fn_constructor_args=(prep,), **write)
    )


# --- what is told -----------------------------------------------------------------------------------------


class _Progress(Progress):
    """Counts files where a scan counts spans."""

    def __init__(self, files: int, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self.files, self.done, self.crops = files, 0, 0
        self.failures: list[Outcome] = []
        self._start = time.monotonic()

    def take(self, outcomes: Sequence[Outcome]) -> None:
        """Count files that have been written."""
        from scanner.results import FAILED, Status

        self.phase = "preparing"
        self.done += len(outcomes)
        self.crops += sum(outcome.crops for outcome in outcomes)
        self.failures += [outcome for outcome in outcomes if Status(outcome.status) in FAILED]

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def line(self) -> str:
        """The status line."""
        left = _clock(self.elapsed() / self.done * (self.files - self.done)) if self.done else "?"
        return (
            f"{self.phase}: {self.done:,}/{self.files:,} files · {self.crops:,} crops"
            f" · {len(self.failures):,} failed · {_clock(self.elapsed())}, {left} left"
        )


def _print_summary(held: Totals, out: str, progress: _Progress, interrupted: bool) -> None:
    for failure in progress.failures[:SHOWN_FAILURES]:
        _say(f"{failure.uri}: {failure.error}")
    if len(progress.failures) > SHOWN_FAILURES:
        _say(f"… and {len(progress.failures) - SHOWN_FAILURES:,} more that failed")
    _say(f"{progress.done:,} files prepared in {_clock(progress.elapsed())}")
    statuses = ", ".join(f"{count:,} {status}" for status, count in sorted(held.files.items()))
    _say(f"{out} now holds {held.files.total():,} files ({statuses}), {held.size_bytes / 1e6:,.1f} MB:")
    for label in LABELS:
        _say(f"  {label}  {held.faces[label]:,} faces, {held.crops[label]:,} crops")
    if interrupted:
        _say("Interrupted. The same command goes on from here.")
    elif held.faces:
        _say(f"Next: deepsweep train {out} --out run")


def _say(text: str) -> None:
    click.echo(escape_controls(text))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
