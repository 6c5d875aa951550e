"""`scan --dry-run`: what a scan would do, on what, how long it may take and cost, without scanning."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.connect import disconnect, resources_here
from cluster.plan import plan_for
from cluster.preflight import check_here, ready
from scanner.config import ScanConfig
from scanner.errors import EXIT_OK, EXIT_PREFLIGHT, UserError
from scanner.headers import Duration, durations
from scanner.pipeline import Todo
from scanner.records import RunFacts
from scanner.results import listed
from scanner.scan import Inventory, needs, plan_facts, sized
from scanner.sources import Video
from scanner.storage import READ, S3_ERRORS, get_bytes, s3_problem

SAMPLE = 20  # videos whose headers are read
SEED = 1  # the same archive gives the same sample
#: Seconds of 720p talking head that one analyser gets through in a second: half of what the slowest two cores did.
SECONDS_PER_ANALYZER_SECOND = 1.8
DOCUMENTED = "the documented figure for 720p (README); a run of your own will tell better"
START_S = 26.0  # starting and ending a scan, measured there too
MEASURED_FROM_S = 300.0  # a shorter run is mostly its start
NORMAL_975 = 1.959964  # 97.5 % quantile of the normal distribution: intervals hold 95 %


@dataclass(frozen=True)
class Estimate:
    """A figure, with the ends of its 95 % interval where that can be told."""

    value: float
    low: float | None = None
    high: float | None = None

    def scaled(self, factor: float, plus: float = 0.0) -> Estimate:
        """Times a factor, plus a constant."""
        ends = [None if end is None else end * factor + plus for end in (self.low, self.high)]
        return Estimate(self.value * factor + plus, *ends)


@dataclass(frozen=True)
class Speed:
    """Seconds of video that one analysing actor gets through in a second, and how that is known."""

    per_analyzer: float
    basis: str


@dataclass
class Forecast:
    """What was counted, and what is only estimated."""

    videos: int = 0
    done_before: int = 0
    bytes: int = 0
    unreadable: int = 0
    sampled: int = 0  # videos whose header was read, or found to be broken
    broken: int = 0  # of these
    hours: Estimate | None = None
    plan: dict[str, Any] | None = None
    minutes: Estimate | None = None
    basis: str | None = None
    cost: Estimate | None = None


def dry_run(inventory: Inventory, config: ScanConfig, facts: RunFacts) -> int:
    """Count the videos, read the headers of a sample, plan the actors, and print what that means.

    Raises UserError (exit code 4) where the scan itself would be refused.
    """
    forecast, sample = _count(inventory, config)
    if forecast.videos:
        plan = forecast.plan = _plan(config, inventory)
        found = durations(sample, config.memory_limit)
        forecast.sampled, forecast.broken = len(found), sum(one.seconds == 0 for one in found)
        seconds = total_seconds(found, forecast.videos, forecast.bytes)
        if seconds is not None:
            speed = measured_speed(config.out, facts, plan["device"]) or Speed(SECONDS_PER_ANALYZER_SECOND, DOCUMENTED)
            wall = seconds.scaled(1 / (speed.per_analyzer * plan["analyzers"]), START_S)
            forecast.hours, forecast.minutes, forecast.basis = (
                seconds.scaled(1 / 3600),
                wall.scaled(1 / 60),
                speed.basis,
            )
            if config.price_per_hour is not None:
                forecast.cost = wall.scaled(config.price_per_hour / 3600)
    if config.json:
        print(json.dumps({"event": "dry_run", **asdict(forecast)}))
    elif not config.quiet:
        print("\n".join(_lines(forecast, config)))
    return EXIT_OK


def _count(inventory: Inventory, config: ScanConfig) -> tuple[Forecast, list[Video]]:
    forecast = Forecast()
    sample: list[Video] = []
    picker = random.Random(SEED)
    for todo in _counted(inventory, forecast):
        # Vitter's algorithm R: each video of the list is as likely to be in the sample as any other.
        if len(sample) < SAMPLE:
            sample.append(todo.video)
        elif (place := picker.randrange(forecast.videos)) < SAMPLE:
            sample[place] = todo.video
    forecast.done_before = inventory.met - forecast.videos if config.limit is None else 0
    return forecast, sample


def _counted(items: Iterable[Todo], forecast: Forecast) -> Iterable[Todo]:
    for todo in items:
        forecast.videos += 1
        forecast.bytes += todo.video.size_bytes or 0
        forecast.unreadable += todo.video.error is not None
        yield todo


def _plan(config: ScanConfig, inventory: Inventory) -> dict[str, Any]:
    """The actors that the scan would start. A cluster is asked; here nothing is started."""
    wanted = needs(config, inventory)
    if config.address is None:
        check_here(wanted)
        resources = resources_here(config.gpus)
        plan = plan_for(resources.rooms, resources.gpus, wanted.memory)
    else:
        try:
            resources, plan = ready(config.address, config.gpus, wanted)
        finally:
            disconnect()
    return plan_facts(resources, sized(plan, config, inventory))


# --- estimates --------------------------------------------------------------------------------------------


def total_seconds(sample: Sequence[Duration], videos: int, total_bytes: int) -> Estimate | None:
    """Seconds of video in the whole archive: its bytes times the sample's seconds per byte.

    The interval is the ratio estimator's, with the correction for a finite list: Cochran, Sampling Techniques
    (1977), eq. 6.13; Student's t after Abramowitz & Stegun 26.7.5. None where the sample tells nothing.
    """
    size = sum(one.size_bytes for one in sample)
    if not size:
        return None
    n, seconds = len(sample), sum(one.seconds for one in sample)
    ratio = seconds / size
    value = total_bytes * ratio
    if n >= videos:
        return Estimate(value, value, value)
    if n < 3:
        return Estimate(value)
    residual = sum((one.seconds - ratio * one.size_bytes) ** 2 for one in sample) / (n - 1)
    error = videos * math.sqrt((1 - n / videos) / n * residual) * student(n - 1)
    return Estimate(value, max(seconds, value - error), max(seconds, value + error))


def student(freedom: int) -> float:
    """97.5 % quantile of Student's t, within 4 % from 2 degrees of freedom on."""
    z = NORMAL_975
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / freedom**power for power, term in enumerate(terms))


def measured_speed(results: str, facts: RunFacts, device: str) -> Speed | None:
    """What the latest long enough run in RESULTS with this model and these settings got through.

    Raises UserError (exit code 4) where S3 fails.
    """
    for uri in reversed(listed(results, "runs/", ".json")):
        try:
            run = json.loads(_record(uri))
            same = (run["model_digest"], run["settings_digest"]) == (facts.spec.digest, facts.settings_digest)
            if same and run["plan"]["device"] == device and run["wall_s"] >= MEASURED_FROM_S and run["video_hours"] > 0:
                analyzers, wall = run["plan"]["analyzers"], run["wall_s"]
                speed = run["video_hours"] * 3600 / wall / analyzers
                what = f"{run['video_hours']:,.1f} hours in {_length(wall / 60)} with {analyzers} analysing actors"
                return Speed(speed, f"run {run['run_id']} in {results}: {what}")
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another version's record, or one that is being written
    return None


def _record(uri: str) -> bytes:
    try:
        return get_bytes(uri)
    except S3_ERRORS as error:
        raise UserError(s3_problem(error, uri, READ), EXIT_PREFLIGHT) from None


# --- words ------------------------------------------------------------------------------------------------


def _lines(forecast: Forecast, config: ScanConfig) -> list[str]:
    lines = [f"{forecast.videos:,} videos to scan, {forecast.bytes / 1e9:,.2f} GB"]
    if forecast.done_before:
        lines.append(f"{forecast.done_before:,} are done already in {config.out}")
    if forecast.unreadable:
        lines.append(f"{forecast.unreadable:,} are listed but can't be read")
    if forecast.hours is not None:
        but = f", {forecast.broken} of which are no videos" if forecast.broken else ""
        hours = _interval(forecast.hours, lambda value: f"{value:,.2f}")
        lines.append(f"about {hours} hours of video, from the headers of {forecast.sampled} of them{but}")
    if forecast.plan is not None:
        lines.append(_plan_line(forecast.plan, config))
    if forecast.minutes is not None:
        lines.append(f"about {_interval(forecast.minutes, _length)}, going by {forecast.basis}")
    if forecast.cost is not None:
        cost = _interval(forecast.cost, lambda value: f"{value:,.2f}")
        lines.append(f"costs about {cost}, at {config.price_per_hour:,g} an hour")
    lines.append("nothing was scanned (--dry-run)")
    return lines


def _plan_line(plan: dict[str, Any], config: ScanConfig) -> str:
    where = "this machine" if config.address is None else f"the {plan['nodes']} nodes at {config.address}"
    scoring = f"{plan['scorers']} scoring on {'GPUs' if plan['device'] == 'cuda' else 'the CPU'}"
    has = f"{plan['cpus']:g} CPUs and {plan['gpus']:g} GPUs"
    analyzers = f"{plan['analyzers']} analysing actors"
    if plan["most_analyzers"] > plan["analyzers"]:
        analyzers += f", up to {plan['most_analyzers']} as the cluster grows"
    line = f"on {where}, with {has} free: {analyzers}, {scoring}"
    if plan["short_of_memory"]:
        line += (
            f"; memory for {plan['short_of_memory']} more analysing actors is missing"
            f" (--memory-limit {config.memory_limit / (1 << 30):.2g}GB each)"
        )
    return line


def _interval(estimate: Estimate, show: Callable[[float], str]) -> str:
    if estimate.low is None or estimate.high is None:
        return show(estimate.value)
    low, value, high = (show(end) for end in (estimate.low, estimate.value, estimate.high))
    return value if low == high else f"{value} ({low} to {high})"


def _length(minutes: float) -> str:
    if minutes >= 120:
        return f"{minutes / 60:,.1f} hours"
    return "1 minute" if minutes < 1.5 else f"{minutes:,.0f} minutes"
