"""`deepsweep compact`: merges small Parquet files of RESULTS so that no reader misses a row or sees one twice.

Every step leaves RESULTS right, so a compaction may be killed anywhere, and several may run at once:

1. Merged files are written beside what they are made of. The views show each row once, in however many files it is.
2. `new_generation` tells readers that are just listing files to list them again.
3. After a time of grace, for readers that have the old files open, those are removed.

A merged file names the files it was made of. One that is still there, after a compaction that was killed, is
removed by the next one. Names of merged files are made from the rows inside: two compactions that merge the same
rows write the same file, and neither takes the other's for what is to be removed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import click

from scanner.config import parse_size
from scanner.errors import EXIT_PREFLIGHT, UserError

MERGED = "part-merged-"
SOURCES_KEY = b"deepsweep.merged_from"  # of a Parquet file's metadata: JSON list of file names beside it
MAX_TARGET = 1 << 30  # bytes; a file and all that it is made of are in memory at once
ROW_GROUP_BYTES = 32 << 20  # of rows in memory: what a reader of one row group must hold
CONNECTIONS = 16  # files read or removed at once: on S3 each is a round trip

#: What tells a row of a span from every other, whatever file it is in.
_SPAN_IDENTITY = [
    *("run_id", "scanned_at", "uri", "content_tag", "model_digest", "settings_digest"),
    *("span_index", "span_count", "status"),
]


@dataclass
class Compaction:
    """What is to be done, or was. Files are paths or URIs; sizes in bytes."""

    groups: list[list[str]] = field(default_factory=list)  # each becomes one file
    leftovers: list[str] = field(default_factory=list)  # merged by a compaction that was killed
    sizes: dict[str, int] = field(default_factory=dict)  # of all files, as they were listed
    live_runs: int = 0  # left alone: they are being written
    skipped: list[str] = field(default_factory=list)  # left alone: damaged, foreign, or of another version
    gone: int = 0  # groups of which another compaction removed a file
    merged: dict[str, int] = field(default_factory=dict)  # written: file → bytes
    removed: set[str] = field(default_factory=set)

    @property
    def files_after(self) -> int:
        return len((self.sizes.keys() - self.removed) | self.merged.keys())

    @property
    def bytes_after(self) -> int:
        return sum(size for file, size in (self.sizes | self.merged).items() if file not in self.removed)


def plan_compaction(results: str, target: int, min_files: int) -> Compaction:
    """Look for files below half of target bytes that lie side by side, at least min_files for one new file.

    Runs that are going on are left alone. Raises UserError where RESULTS can't be read.
    """
    from queries.catalog import PART, REVIEW_PART, list_files
    from scanner.status import read_runs
    from scanner.storage import LIST, S3_ERRORS, file_sizes, s3_problem

    list_files(results)  # says what is wrong where these are no results
    plan, folders = Compaction(), defaultdict(list)
    try:
        for prefix, name in (("spans/", PART), ("reviews/", REVIEW_PART)):
            for file, size in file_sizes(results, prefix, ".parquet").items():
                if name.search(file):
                    plan.sizes[file] = size
                    folders[file.rpartition("/")[0]].append(file)
    except S3_ERRORS as error:
        raise UserError(s3_problem(error, results, LIST), EXIT_PREFLIGHT) from None
    # Read after the listing: a run's record is there before its first file.
    live = {run.run_id for run in read_runs(results) if run.is_live}
    for folder, files in folders.items():
        if folder.rpartition("/run_id=")[2] in live:
            plan.live_runs += 1
            continue
        leftovers = _leftovers(files)
        plan.leftovers += leftovers
        rest = {file: plan.sizes[file] for file in files if file not in leftovers}
        plan.groups += group_files(rest, target, min_files)
    return plan


def group_files(sizes: dict[str, int], target: int, min_files: int) -> list[list[str]]:
    """Groups of at least min_files small files, in their order, each closed once it has target bytes.

    A small file has less than half of target, so that merged files are not merged over and over.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for file, size in sizes.items():
        if size >= target / 2:
            continue
        groups[-1].append(file)
        filled += size
        if filled >= target:
            groups.append([])
            filled = 0
    return [group for group in groups if len(group) >= max(2, min_files)]


def carry_out(results: str, plan: Compaction, grace_s: float, groups: Iterable[list[str]] | None = None) -> None:
    """Do what is planned, noting in plan what was done. groups: plan.groups, as an iterator that shows progress.

    Raises UserError where RESULTS can't be written to.
    """
    from scanner.results import new_generation
    from scanner.storage import DELETE, S3_ERRORS, WRITE, delete_file, ensure_writable, is_s3, s3_problem
    from scanner.uris import join

    ensure_writable(results)
    permission = DELETE
    try:
        delete_file(join(results, ".deepsweep-probe"))  # where nothing may be removed, nothing is to be merged
        permission = WRITE
        done: list[str] = []
        for group in plan.groups if groups is None else groups:
            done += _merge_group(group, plan)
        if not done and not plan.leftovers:
            return
        new_generation(results)
        time.sleep(grace_s)
        permission = DELETE
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            # Leftovers before what names them, which may be a leftover, too: nobody else knows them.
            plain = [file for file in plan.leftovers if not _name(file).startswith(MERGED)]
            for files in (plain, [file for file in plan.leftovers if file not in plain], done):
                list(pool.map(delete_file, files))
                plan.removed |= set(files)
    except S3_ERRORS as error:
        if not is_s3(results):
            raise
        raise UserError(s3_problem(error, results, permission), EXIT_PREFLIGHT) from None
    except OSError as error:
        raise UserError(
            f"{results} could not be compacted: {error.strerror}. No row is lost: mend that and repeat it.",
            EXIT_PREFLIGHT,
        ) from None


def _merge_group(group: list[str], plan: Compaction) -> list[str]:
    """Write the file that holds all rows of a group; returns what it makes superfluous."""
    from scanner.storage import put_bytes

    try:
        name, data, used, skipped = merge(group)
    except FileNotFoundError:
        plan.gone += 1
        return []
    plan.skipped += skipped
    if len(used) < 2:
        return []
    target = f"{group[0].rpartition('/')[0]}/{name}"
    put_bytes(target, data)
    plan.merged[target] = len(data)
    return [file for file in used if file != target]


def merge(files: Sequence[str]) -> tuple[str, bytes, list[str], list[str]]:
    """(name, content) of one Parquet file with all rows of these, each once; files used, files left alone.

    Holds the files and the new one in memory: twice the target size, and one row group.
    Raises FileNotFoundError if one is gone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from queries.reviews import REVIEW
    from scanner.results import SPAN
    from scanner.storage import get_bytes

    of_reviews = "/reviews/" in files[0]
    schema, identity = (REVIEW, REVIEW.names) if of_reviews else (SPAN, _SPAN_IDENTITY)
    used, skipped, seen = [], [], set()
    sink = pa.BufferOutputStream()
    with ThreadPoolExecutor(CONNECTIONS) as pool, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        pending: list[pa.Table] = []
        for file, content in zip(files, pool.map(get_bytes, files), strict=True):
            try:
                tables = list(_tables(content, schema))
            except (pa.ArrowException, OSError, ValueError):
                skipped.append(file)
                continue
            used.append(file)
            for table in tables:
                rows = [repr(row) for row in zip(*(table[c].to_pylist() for c in identity), strict=True)]
                new = [i for i, row in enumerate(rows) if row not in seen and not seen.add(row)]
                pending.append(table if len(new) == len(rows) else table.take(pa.array(new, pa.int64())))
            if sum(table.nbytes for table in pending) >= ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(pending))
                pending = []
        if pending:
            writer.write_table(pa.concat_tables(pending))
        writer.add_key_value_metadata({SOURCES_KEY: json.dumps([_name(file) for file in used]).encode()})
    digest = hashlib.sha256("\n".join(sorted(seen)).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{MERGED}{digest[:32]}.parquet", sink.getvalue().to_pybytes(), used, skipped


def _tables(content: bytes, schema) -> Iterator:
    """A file's rows by row group, in these columns; NULL in those that came with a later version.

    Raises ValueError for a file with other columns: it is not ours to drop them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(content)) as file:
        theirs = file.schema_arrow
        if any(column.name not in schema.names or column.type != schema.field(column.name).type for column in theirs):
            raise ValueError("written by another version")
        if not {"uri"} <= set(theirs.names):
            raise ValueError("not written by deepsweep")
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            columns = [
                table[column.name] if column.name in theirs.names else pa.nulls(len(table), column.type)
                for column in schema
            ]
            yield pa.table(columns, schema=schema)


def _leftovers(files: list[str]) -> list[str]:
    """Which of the files in one folder are named by a merged one beside them."""
    import pyarrow as pa

    beside = {_name(file): file for file in files}
    if len(files) < 2 or not any(name.startswith(MERGED) for name in beside):
        return []
    named: set[str] = set()
    for name, file in beside.items():
        if name.startswith(MERGED):
            try:
                named |= set(_sources(file)) - {name}
            except (pa.ArrowException, OSError, ValueError):
                continue  # damaged or gone: then it makes nothing superfluous
    return [beside[name] for name in sorted(named & beside.keys())]


def _sources(file: str) -> list[str]:
    import pyarrow.parquet as pq

    from scanner.storage import arrow_filesystem

    filesystem, _ = arrow_filesystem(file)
    metadata = pq.read_metadata(file.removeprefix("s3://"), filesystem=filesystem).metadata or {}
    return json.loads(metadata.get(SOURCES_KEY, b"[]"))


def _name(file: str) -> str:
    return file.rpartition("/")[2]


# --- the command ------------------------------------------------------------------------------------------


@click.command()
@click.argument("results", envvar="DEEPSWEEP_RESULTS", metavar="RESULTS")
@click.option("--target-size", default="128MB", show_default=True, metavar="SIZE", help="Size of the merged files.")
@click.option(
    "--min-files", type=click.IntRange(2), default=4, show_default=True, help="Merge at least so many into one."
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 86400),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Time for queries that have begun to end, before the old files are removed.",
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be merged.")
def compact(results: str, target_size: str, min_files: int, grace: float, dry_run: bool) -> None:
    """Merge the small Parquet files of RESULTS, a folder or s3://bucket/prefix.

    Scans write a file every few spans: after a night there are thousands, and queries, on S3 above all, spend their
    time opening them. This may run at any time, beside queries and scans; runs that are going on are left alone. No
    query misses a row or counts one twice meanwhile. When it is killed, the next one finishes its work.

    \b
    After each nightly scan:
      deepsweep compact s3://archive-results
    What it would do:
      deepsweep compact results --dry-run

    \b
    Exit codes: 0 done or nothing to do, 2 usage, 4 RESULTS can't be written to, 130 interrupted.
    """
    try:
        target = parse_size(target_size)
    except ValueError as error:
        raise UserError(f"--target-size: {error}.") from None
    if not 1 <= target <= MAX_TARGET:
        raise UserError(f"--target-size must be more than 0 and at most {_size(MAX_TARGET)}.")
    plan = plan_compaction(results, target, min_files)
    if dry_run:
        click.echo(_forecast(results, plan))
        return
    if plan.groups and sys.stderr.isatty():
        with click.progressbar(plan.groups, label="merging", file=sys.stderr) as groups:
            carry_out(results, plan, grace, groups)
    else:
        carry_out(results, plan, grace)
    click.echo(_report(results, plan))


def _forecast(results: str, plan: Compaction) -> str:
    count = sum(map(len, plan.groups))
    size = sum(plan.sizes[file] for group in plan.groups for file in group)
    lines = [
        f"{results}: {_files(len(plan.sizes))}, {_size(sum(plan.sizes.values()))}. "
        f"{count:,} of them, {_size(size)}, would become {len(plan.groups):,}."
    ]
    if plan.leftovers:
        lines.append(f"{_files(len(plan.leftovers))} that an earlier compaction merged would be removed.")
    return "\n".join(lines + _notes(plan))


def _report(results: str, plan: Compaction) -> str:
    before = f"{_files(len(plan.sizes))}, {_size(sum(plan.sizes.values()))}"
    if not plan.removed and not plan.merged:
        return "\n".join([f"{results}: {before}: nothing to merge.", *_notes(plan)])
    after = f"{_files(plan.files_after)}, {_size(plan.bytes_after)}"
    return "\n".join([f"{results}: {before} became {after}.", *_notes(plan)])


def _notes(plan: Compaction) -> list[str]:
    from queries.text import escape_controls

    notes = []
    if plan.live_runs:
        notes.append(f"{plan.live_runs} run{'s' * (plan.live_runs > 1)} left alone: still going on.")
    if plan.gone:
        notes.append(f"{plan.gone} group{'s' * (plan.gone > 1)} left alone: another compaction is at it.")
    notes += [f"left alone: {escape_controls(file)}, damaged or of another version." for file in plan.skipped]
    return notes


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def _size(count: int) -> str:
    for unit, shift in (("GB", 30), ("MB", 20), ("kB", 10)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count} bytes"
