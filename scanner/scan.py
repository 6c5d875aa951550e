"""One scan from the driver's side: check, list, run the pipeline, sum up."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import logging
import platform
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.plan import SPANS_PER_TASK
from queries.text import escape_controls
from scanner import errors, metrics
from scanner.config import ScanConfig
from scanner.diagnosis import diagnose, forget_blocks, pulse
from scanner.errors import UserError
from scanner.heartbeat import Heartbeat
from scanner.names import login_name
from scanner.pipeline import VIDEOS_PER_BLOCK, Todo, Work, dataset, todo_block, written
from scanner.progress import Progress
from scanner.records import RunFacts
from scanner.results import FAILED, WRITE_PATIENCE_S, Status, latest_run, new_run_id, write_run
from scanner.resume import Done
from scanner.scratch import Scratch, sweep
from scanner.sources import check_sources, iter_videos
from scanner.storage import ensure_writable
from scanner.uris import is_s3
from scanner.watchdog import Stalled, Watchdog, patience_s

if TYPE_CHECKING:
    from cluster.connect import Resources
    from cluster.plan import Plan
    from cluster.preflight import Needs

REPORTED_PACKAGES = (
    "deepsweep",
    "ray",
    "torch",
    "mediapipe",
    "decord",
    "av",
    "numpy",
    "pyarrow",
)
#: Spans that wait with a splitter for the driver, which comes by ten times a second: with Ray's 2 one splitter passes
#: on no more than 16 spans a second, too few for a node with many cores and an archive of short clips.
SPANS_TO_COLLECT = 8


def scan(config: ScanConfig) -> int:
    """Run a scan and return the exit code. Raises UserError before anything is scanned."""
    if not config.sources:
        raise UserError("Name what to scan: a folder, a file, a glob, s3://bucket/prefix or a manifest.")
    if config.address is not None and config.address.startswith("ray://"):
        from cluster.remote import scan_remotely

        return scan_remotely(config)
    facts = RunFacts.of(config)
    check_sources(config.sources)
    ensure_writable(config.out)
    facts = replace(facts, run_id=new_run_id(after=latest_run(config.out)))
    inventory = Inventory(config, _done(config, facts))  # its only owner: forgotten once all is listed
    if config.dry_run:
        from scanner.dryrun import dry_run

        return dry_run(inventory, config, facts)
    record = _begin_record(config, facts)
    with _webhook_told(config, record):
        with Progress(quiet=config.quiet, as_json=config.json) as progress:
            first = next(inventory.blocks(progress), None)
            if first is not None:
                _run(config, facts, inventory, first, progress, record)
        if first is None:
            return _nothing_to_do(config, inventory)
        return _conclude(config, facts, inventory, progress, record)


def _done(config: ScanConfig, facts: RunFacts) -> Done:
    done = Done.load(config.out, facts.spec.digest, facts.settings_digest, retry_failed=config.retry_failed)
    return Done() if config.rescan else done


class Inventory:
    """The videos of a scan, listed as a stream, less what is done; counts what it meets."""

    def __init__(self, config: ScanConfig, done: Done) -> None:
        self.met = self.todo = 0
        self.downloads = 0  # bytes
        self.largest_downloads = [0] * SPANS_PER_TASK  # bytes, the smallest of them first
        seen = self._count(iter_videos(config.sources, config.include, config.exclude))
        self._todo = itertools.islice(done.remaining(seen), config.limit)

    def _count(self, videos):
        for video in videos:
            self.met += 1
            yield video

    def __iter__(self) -> Iterator[Todo]:
        for item in self._todo:
            self.todo += 1
            if is_s3(item.video.uri):
                self.downloads += item.video.size_bytes or 0
                heapq.heappushpop(self.largest_downloads, item.video.size_bytes or 0)
            yield item

    def blocks(self, progress: Progress) -> Iterator[Any]:
        """Blocks for the pipeline's input; continues where it was left."""
        items = iter(self)
        while chunk := list(itertools.islice(items, VIDEOS_PER_BLOCK)):
            progress.videos = self.todo
            yield todo_block(chunk)


def _run(
    config: ScanConfig, facts: RunFacts, inventory: Inventory, first, progress: Progress, record: dict[str, Any]
) -> None:
    """Drive the pipeline until everything is written or the user interrupts; record tells how that went."""
    from ray.exceptions import RayError

    from cluster.connect import disconnect
    from cluster.preflight import ready

    base = scratch_base(config)
    sweep(base)
    began = time.monotonic()
    progress.phase = "starting"
    with (
        watchdog(config, inventory, progress, record),
        sigterm_interrupts(),
        Heartbeat(config.out, record, progress) as heart,
    ):
        try:
            resources, plan = ready(config.address, config.gpus, needs(config, inventory))
            record["plan"] = plan_facts(resources, plan)
            heart.start()
            set_up_ray_data()
            todo = [first, *inventory.blocks(progress)]
            progress.listing = False
            plan = sized(plan, config, inventory)
            record["plan"] = plan_facts(resources, plan)
            progress.event("started", run_id=facts.run_id, videos=inventory.todo, **record["plan"])
            scratch = Scratch(base / facts.run_id, config.scratch_size)
            work = Work.of(config, facts, scratch, plan.spans_per_task)
            rows = dataset(todo, work, plan)
            del todo  # Ray's object store has it now: 30 MB of a million videos
            for batch in rows.iter_batches(batch_size=None, prefetch_batches=0):
                if "first_result_s" not in record:
                    record["first_result_s"] = round(time.monotonic() - began, 2)
                _count(progress, batch)
                forget_blocks()
            record["finished_at"] = _now()
        except Stalled as stall:
            record |= {"finished_at": _now(), "interrupted": True, "stalled": stall.diagnosis}
            progress.event("stalled", diagnosis=stall.diagnosis)
        except KeyboardInterrupt:
            record |= {"finished_at": _now(), "interrupted": True}
        except (RayError, ConnectionError) as error:
            raise UserError(
                f"the scan broke off: {root_cause(error)}. What was finished is kept in {config.out};"
                " the same command goes on from there.",
                errors.EXIT_PREFLIGHT,
            ) from None
        finally:
            disconnect()
            sweep(base)
            record |= progress.facts(time.monotonic() - began)


def _conclude(
    config: ScanConfig, facts: RunFacts, inventory: Inventory, progress: Progress, record: dict[str, Any]
) -> int:
    """Write down that the run has ended, sum up what is on disk, tell everyone, choose the exit code."""
    from scanner.summary import print_summary, summarize

    problems, summary = [], None
    lost = inventory.todo - progress.videos_done
    if lost > 0 and not record["interrupted"]:  # which a stalled run is, too
        record["broke_off"] = f"{lost:,} videos got no row, or not all of theirs: run the same command again"
        problems.append(record["broke_off"])
    # First of all, with what the driver has counted: whatever fails from here on, the run has ended.
    patience_s = 0.0 if record["interrupted"] else WRITE_PATIENCE_S
    write_run(config.out, record, patience_s)
    try:
        summary = summarize(config.out, facts.run_id)
    except Exception as error:  # whatever it meets: the scan itself is done
        problems.append(f"what was scanned is in {config.out}, but could not be summed up: {root_cause(error)}")
    else:
        del record["so_far"]
        record |= {"counts": summary.counts, "videos": summary.videos, "flagged_clips": summary.flagged_clips}
        write_run(config.out, record, patience_s)
        if not config.quiet and not config.json:
            print_summary(summary, record, config)
    progress.event("finished", **record)
    for problem in problems:
        print(f"deepsweep: {escape_controls(problem)}.", file=sys.stderr)
    if "stalled" in record:
        return errors.EXIT_PREFLIGHT
    if record["interrupted"]:
        return errors.EXIT_INTERRUPTED
    if problems or summary is None:
        return errors.EXIT_PREFLIGHT
    if config.fail_on_flag and summary.flagged_clips:
        return errors.EXIT_FLAGGED
    failed = sum(n for status, n in summary.counts.items() if Status(status) in FAILED)
    return errors.EXIT_SOME_FAILED if failed else errors.EXIT_OK


@contextlib.contextmanager
def _webhook_told(config: ScanConfig, record: dict[str, Any]) -> Iterator[None]:
    """Tell the webhook how the run in this block ended, also where an error ends it."""
    try:
        yield
    except BaseException as error:
        record |= {"finished_at": record["finished_at"] or _now(), "broke_off": str(error) or type(error).__name__}
        record["interrupted"] |= isinstance(error, KeyboardInterrupt)
        raise
    finally:
        if config.webhook and "plan" in record:  # without one it never began, and left no record either
            from scanner.webhook import tell_webhook

            tell_webhook(config.webhook, record)


def _nothing_to_do(config: ScanConfig, inventory: Inventory) -> int:
    if inventory.met == 0:
        raise UserError(
            f"nothing to scan: no video in {' '.join(config.sources)}. Check --include and --exclude.",
            errors.EXIT_NOTHING_TO_SCAN,
        )
    message = f"nothing new: {inventory.met:,} videos are done already in {config.out}"
    if config.json:
        print(json.dumps({"event": "finished", "videos": 0, "done_before": inventory.met}))
    elif not config.quiet:
        print(f"{message} (--retry-failed scans failed ones again, --rescan all).")
    return errors.EXIT_OK


# --- pieces -----------------------------------------------------------------------------------------------


def scratch_base(config: ScanConfig) -> Path:
    """The folder under which each run has its own scratch folder; per user, for /tmp is shared."""
    default = Path(tempfile.gettempdir()) / f"deepsweep-scratch-{login_name()}"
    return Path(config.scratch).absolute() if config.scratch else default


def needs(config: ScanConfig, inventory: Inventory) -> Needs:
    """What a scan of the videos met so far wants of every node."""
    from cluster.preflight import Needs

    folder = str(scratch_base(config)) if inventory.downloads else None
    return Needs(folder, min(config.scratch_size, inventory.downloads), config.memory_limit)


def sized(plan: Plan, config: ScanConfig, inventory: Inventory) -> Plan:
    """The plan for as many videos as were met. Who says how long a silence may be had one span a task in mind."""
    return plan.for_videos(inventory.todo) if config.stall_minutes is None else plan


def watchdog(config: ScanConfig, inventory: Inventory, progress: Progress, record: Mapping[str, Any]) -> Watchdog:
    """Ends a scan of which nothing moves any more: no video found, no span written, no task of a stage ended."""

    def spans_per_task() -> int:
        return record.get("plan", {"spans_per_task": 1})["spans_per_task"]  # none while Ray starts

    return Watchdog(
        patience_s=lambda: patience_s(config, heapq.nlargest(spans_per_task(), inventory.largest_downloads)),
        pulse=lambda: (inventory.met, progress.spans_done, *pulse()),
        diagnose=diagnose,
    )


def set_up_ray_data() -> None:
    """Ray Data's settings for a run of deepsweep: its own bars off, ours on."""
    import ray.data

    from cluster.backpressure import RunAhead

    logger = logging.getLogger("ray.data")
    for handler in [one for one in logger.handlers if isinstance(one, logging.StreamHandler)]:
        logger.removeHandler(handler)  # what ends a scan is told in a sentence; the traceback is in Ray's log file
    warnings.filterwarnings("ignore", category=UserWarning, module="ray.data")  # few videos do not fill all actors
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A row is a task's spans with megabytes of crops, or a video with hours of work behind it: every row travels as
    # its own block, at once, so that no finished task waits for others and no long video keeps one actor.
    context.target_max_block_size = 1
    context.target_min_block_size = 1
    RunAhead.rule(context)
    context._max_num_blocks_in_streaming_gen_buffer = SPANS_TO_COLLECT
    context.raise_original_map_exception = True  # by default it is "UDF failed to process a data block"
    context.execution_no_progress_timeout_s = -1  # half an hour is not long for two attempts at a span: see watchdog


def _count(progress: Progress, batch: Any) -> None:
    videos_before = progress.videos_done
    spans = written(batch)
    for span in spans:
        failed = Status(span.status) in FAILED
        progress.span(span.uri, span.siblings, span.status, failed=failed, flagged=span.flagged, seconds=span.seconds)
    for status, count in Counter(span.status for span in spans).items():
        metrics.count("deepsweep_spans_total", count, status=status)
    metrics.count("deepsweep_video_seconds_total", sum(span.seconds for span in spans))
    metrics.count("deepsweep_flagged_clips_total", sum(span.flagged for span in spans))
    metrics.count("deepsweep_videos_total", progress.videos_done - videos_before)


def _begin_record(config: ScanConfig, facts: RunFacts) -> dict[str, Any]:
    return {
        "run_id": facts.run_id,
        "started_at": _now(),
        "finished_at": None,
        "interrupted": False,
        "settings": config.record(),
        "model": facts.spec.label,
        "model_digest": facts.spec.digest,
        "settings_digest": facts.settings_digest,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in REPORTED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def plan_facts(resources: Resources, plan: Plan) -> dict[str, Any]:
    """What a scan runs on, as a run's record and its events tell it."""
    return {
        "nodes": resources.nodes,
        "cpus": resources.cpus,
        "gpus": resources.gpus,
        "analyzers": plan.analyzers,
        "scorers": plan.scorers,
        "device": plan.device,
        "most_analyzers": plan.most_analyzers,
        "most_scorers": plan.most_scorers,
        "short_of_memory": plan.short_of_memory,
        "spans_per_task": plan.spans_per_task,
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def root_cause(error: BaseException) -> str:
    """What went wrong in a worker, in a sentence, out of Ray's wrappers."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or ["no message"]
    # A traceback ends with what went wrong; whatever else Ray says of it comes behind the first line.
    said = lines[-1 if any(line.startswith("File ") for line in lines) else 0].rstrip(".")
    return said if isinstance(cause, UserError) else f"{type(cause).__name__}: {said}"


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM (a supervisor's stop) end a scan as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
