"""How many actors of which kind a cluster gets, and whether each finds a node."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from scanner.errors import EXIT_PREFLIGHT, UserError

# Shares of a core. Each kind waits for the others now and then, so they add up to less than their load
# at full speed, and everything fits on two cores.
ANALYZE_CPUS = 0.7
SCORE_CPUS = 0.3  # beside a GPU, or scoring on the CPU
SPLIT_CPUS = 0.1
SINK_CPUS = 0.1

#: Cores whose analysed clips keep one CPU scorer busy: measured, scoring costs 0.29 of the analysis.
CORES_PER_CPU_SCORER = 3
#: The most spans that a GPU scores, and that a part on disk holds, at once. The crops of a one-face span are 33 MB
#: (60 s, 5 a second, 192 px): two batches of 4 with six faces each just fit into a 2 GiB object store. Where tasks
#: hold several spans, a batch holds so many tasks' spans.
SPANS_PER_GPU_BATCH = 4
SPANS_PER_PART = 16
#: A task costs the driver about as much with one span in it as with several, which matters where short clips or many
#: cores make it one of hundreds a second. So an analyser gets up to so many spans at once, and as much video as so many
#: full ones; more would be more to do again when a node is lost, and more memory for crops. Only where so many videos
#: are there for each analyser: with fewer, some would have several spans to do in the end and others none.
SPANS_PER_TASK, FULL_SPANS_PER_TASK = 4, 2
VIDEOS_PER_ANALYZER = 16
#: A batch waits for spans to come: with so many analysers for each of them for a quarter of what one takes, and a part
#: on disk, for which nobody waits but who watches, for half of it.
ANALYZERS_PER_BATCHED_SPAN, ANALYZERS_PER_WRITTEN_SPAN = 4, 2
#: Tasks that an actor has got, the one in work among them. The driver hands out new ones about ten times a second, and
#: learns two rounds later that one has ended: enough for analysis, which takes seconds, but a GPU, or a sink on a fast
#: disk, would wait for work most of the time. What may wait in the object store is bounded: see backpressure.py.
TASKS_IN_FLIGHT = 2
QUICK_TASKS_IN_FLIGHT = 4
MIN_CPUS = 1.5
STAGES = {"split": "fetch videos", "analyze": "analyse videos", "score": "score clips", "sink": "write results"}
SHOWN_NODES = 4  # in a message
TOLERANCE = 1e-6  # Ray counts in ten-thousandths, so sums of shares may come out a little high


@dataclass(frozen=True)
class Room:
    """What is free on one node, or what a node to come will have. memory: bytes for processes, of Ray's count."""

    address: str
    cpus: float
    gpus: float = 0.0
    memory: float = math.inf


class Share(NamedTuple):
    """What one actor takes of a node; those that take most come last."""

    gpus: float
    cpus: float
    memory: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Keyword arguments for each stage of the dataset, and where the network runs.

    analyzers, scorers: actors to begin with. most_analyzers, most_scorers: once the cluster has grown as far as it may.
    short_of_memory: analysers that the cores would carry, but not the memory.
    """

    analyzers: int
    scorers: int
    device: str  # "cuda" or "cpu"
    split: dict[str, Any]
    analyze: dict[str, Any]
    score: dict[str, Any]
    sink: dict[str, Any]
    most_analyzers: int
    most_scorers: int
    short_of_memory: int = 0
    spans_per_task: int = 1  # of analysis, at most

    def for_videos(self, count: int) -> Plan:
        """The plan for so many videos; batches hold as many tasks' spans as before, and parts no more than they may."""
        if count < VIDEOS_PER_ANALYZER * self.most_analyzers:
            return self
        most = max(1, SPANS_PER_PART // (FULL_SPANS_PER_TASK * self.score["batch_size"]))
        sink = self.sink | {"batch_size": min(most, self.sink["batch_size"])}
        return replace(self, spans_per_task=SPANS_PER_TASK, sink=sink)


def make_plan(cpus: float, gpus: float, nodes: int = 1) -> Plan:
    """Actor pools for so many cores and GPUs, wherever they are; cpus >= MIN_CPUS."""
    sizes = dict(zip(STAGES, _sizes(cpus, gpus, nodes), strict=True))
    return _plan(sizes, sizes, _shares(gpus, 0))


def plan_for(
    rooms: Sequence[Room],
    gpus: float,
    memory_limit: int = 0,
    grown: Sequence[Room] = (),
    most_gpus: float = math.inf,
) -> Plan:
    """Actor pools for these nodes, on which each actor has its cores, its GPU and its memory on one of them.

    gpus: at most so many are used; below 1, that share of one. memory_limit: bytes that a child that analyses may take.
    grown: the nodes of the cluster once it has grown as far as it may, where it can; pools then grow, and shrink again.
    most_gpus: at most so many are used then. Clips are scored where they are at the beginning: on GPUs, or on the CPU.
    An actor that finds no node is left out: Ray would wait for its place for ever. Where no node has memory_limit,
    one analyser goes to each that has the most.
    Raises UserError (exit code 4) where a stage would be left without any.
    """
    memory = min(memory_limit, max((room.memory for room in rooms if room.cpus >= ANALYZE_CPUS), default=0))
    shares = _shares(gpus, memory)
    placed = _placed(rooms, gpus, shares)
    for stage, share in shares.items():
        if not placed[stage]:
            raise UserError(_no_place(stage, share, rooms), EXIT_PREFLIGHT)
    without_limit = _placed(rooms, gpus, _shares(gpus, 0))
    most_gpus = gpus if gpus < 1 else min(most_gpus, sum(room.gpus for room in grown))
    most = _placed(grown, most_gpus, shares) | placed
    if any(math.isinf(room.memory) for room in grown):  # the autoscaler starts no node for what it does not know of
        shares = _shares(gpus, 0)
    return _plan(placed, most, shares, short_of_memory=without_limit["analyze"] - placed["analyze"])


def _sizes(cpus: float, gpus: float, nodes: int) -> tuple[int, int, int, int]:
    """Actors of each of STAGES."""
    cores = max(1, int(cpus))
    # More GPUs than cores would starve, and their actors take shares of the cores as well.
    scorers = min(math.ceil(gpus), cores) if gpus else max(1, int(cpus / CORES_PER_CPU_SCORER))
    splitters, sinks = max(1, min(nodes, cores // 4)), max(1, cores // 16)
    others = scorers * SCORE_CPUS + splitters * SPLIT_CPUS + sinks * SINK_CPUS
    analyzers = max(1, min(cores, int((cpus - others) / ANALYZE_CPUS)))
    return splitters, analyzers, scorers, sinks


def _shares(gpus: float, memory: float) -> dict[str, Share]:
    """What one actor of each of STAGES takes."""
    return {
        "split": Share(0, SPLIT_CPUS),
        "analyze": Share(0, ANALYZE_CPUS, memory if math.isfinite(memory) else 0),
        "score": Share(min(gpus, 1), SCORE_CPUS),
        "sink": Share(0, SINK_CPUS),
    }


def _placed(rooms: Sequence[Room], gpus: float, shares: dict[str, Share]) -> Counter[str]:
    """How many actors of each stage find a node: one of each first, and each where it leaves the least behind."""
    free = [Share(room.gpus, room.cpus, room.memory) for room in rooms]
    wanted = dict(zip(STAGES, _sizes(sum(room.cpus for room in rooms), gpus, len(rooms)), strict=True))
    # Those that need most go first: a GPU and a core beside it, then most of a core.
    order = sorted(STAGES, key=lambda stage: shares[stage], reverse=True)
    placed = Counter({stage: _place(free, shares[stage], 1) for stage in order})
    for stage in order:
        placed[stage] += _place(free, shares[stage], wanted[stage] - 1)
    return placed


def _place(free: list[Share], share: Share, count: int) -> int:
    """Take what so many actors need from the nodes, those with least first: without GPUs before those with.

    Returns how many found a place.
    """
    placed = 0
    for number in sorted(range(len(free)), key=free.__getitem__):
        pairs = list(zip(free[number], share, strict=True))
        fits = int(min(count - placed, *((has + TOLERANCE) / need for has, need in pairs if need)))
        free[number] = Share(*(has - fits * need for has, need in pairs))
        placed += fits
    return placed


def _no_place(stage: str, share: Share, rooms: Sequence[Room]) -> str:
    gpu = "" if not share.gpus else " and a whole GPU" if share.gpus == 1 else f" and {share.gpus:g} of a GPU"
    needs = f"{share.cpus:g} CPU{gpu} free on one node"
    best = sorted(rooms, key=lambda room: (room.gpus, room.cpus), reverse=True)
    found = ", ".join(f"{room.address} has {room.cpus:g} CPUs and {room.gpus:g} GPUs" for room in best[:SHOWN_NODES])
    more = f", {len(best) - SHOWN_NODES} nodes have less" if len(best) > SHOWN_NODES else ""
    mend = "start Ray there with a core for each GPU, or scan with --gpus 0" if gpu else "add a node with 2 CPUs"
    return f"an actor that is to {STAGES[stage]} needs {needs}, but {found}{more}: {mend}."


def _plan(now: dict[str, int], most: dict[str, int], shares: dict[str, Share], short_of_memory: int = 0) -> Plan:
    """A plan that begins with `now` actors of each of STAGES, and never has more than `most`."""
    use_gpu = shares["score"].gpus > 0
    batch = max(1, now["analyze"] // ANALYZERS_PER_BATCHED_SPAN)
    part = max(1, now["analyze"] // ANALYZERS_PER_WRITTEN_SPAN)
    scored = min(batch, SPANS_PER_GPU_BATCH) if use_gpu else 1
    quick = {"score", "sink"} if use_gpu else {"sink"}
    pools = {stage: _pool(now[stage], most[stage], share, stage in quick) for stage, share in shares.items()}
    return Plan(
        analyzers=now["analyze"],
        scorers=now["score"],
        device="cuda" if use_gpu else "cpu",
        split=pools["split"],
        analyze=pools["analyze"],
        score=pools["score"] | {"num_gpus": shares["score"].gpus, "batch_size": scored},
        sink=pools["sink"] | {"batch_size": min(part, SPANS_PER_PART) // scored},  # of what was scored together
        most_analyzers=most["analyze"],
        most_scorers=most["score"],
        short_of_memory=short_of_memory,
    )


def _pool(size: int, most: int, share: Share, quick: bool) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy  # `doctor` must be able to say that it can't be imported

    in_flight = QUICK_TASKS_IN_FLIGHT if quick else TASKS_IN_FLIGHT
    pool = ActorPoolStrategy(min_size=size, max_size=max(size, most), max_tasks_in_flight_per_actor=in_flight)
    return {"compute": pool, "num_cpus": share.cpus} | ({"memory": int(share.memory)} if share.memory else {})
