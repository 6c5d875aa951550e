"""How many actors of which kind a cluster gets, and whether each finds a node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scanner.errors import EXIT_PREFLIGHT, UserError

# Shares of a core. Each kind waits for the others now and then, so they add up to less than their load
# at full speed, and everything fits on two cores.
ANALYZE_CPUS = 0.7
SCORE_CPUS = 0.3  # beside a GPU, or scoring on the CPU
SPLIT_CPUS = 0.1
SINK_CPUS = 0.1

#: Cores whose analysed clips keep one CPU scorer busy: measured, scoring costs 0.29 of the analysis.
CORES_PER_CPU_SCORER = 3
SPANS_PER_GPU_BATCH = 16  # about 300 clips of 60 s spans: several full passes, and few parts on disk
MIN_CPUS = 1.5
STAGES = {"split": "fetch videos", "analyze": "analyse videos", "score": "score clips", "sink": "write results"}
SHOWN_NODES = 4  # in a message
TOLERANCE = 1e-6  # Ray counts in ten-thousandths, so sums of shares may come out a little high


@dataclass(frozen=True)
class Room:
    """What is free on one node."""

    address: str
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Keyword arguments for each stage of the dataset, and where the network runs."""

    analyzers: int
    scorers: int
    device: str  # "cuda" or "cpu"
    split: dict[str, Any]
    analyze: dict[str, Any]
    score: dict[str, Any]
    sink: dict[str, Any]


def make_plan(cpus: float, gpus: float, nodes: int = 1) -> Plan:
    """Actor pools for so many cores and GPUs, wherever they are; cpus >= MIN_CPUS."""
    return _plan(*_sizes(cpus, gpus, nodes), use_gpu=gpus >= 1)


def plan_for(rooms: Sequence[Room], gpus: float) -> Plan:
    """Actor pools for these nodes, on which each actor has its cores and its GPU on one of them.

    gpus: at most so many are used. An actor that finds no node is left out: Ray would wait for its place for ever.
    Raises UserError (exit code 4) where a stage would be left without any.
    """
    use_gpu = gpus >= 1
    wanted = _sizes(sum(room.cpus for room in rooms), gpus, len(rooms))
    placed = _placed(rooms, wanted, use_gpu)
    for stage, (cpus, gpu) in _shares(use_gpu).items():
        if not placed[stage]:
            raise UserError(_no_place(stage, cpus, gpu, rooms), EXIT_PREFLIGHT)
    return _plan(*(placed[stage] for stage in STAGES), use_gpu=use_gpu)


def _sizes(cpus: float, gpus: float, nodes: int) -> tuple[int, int, int, int]:
    """Actors of each of STAGES."""
    cores = max(1, int(cpus))
    # More GPUs than cores would starve, and their actors take shares of the cores as well.
    scorers = min(int(gpus), cores) if gpus >= 1 else max(1, int(cpus / CORES_PER_CPU_SCORER))
    splitters, sinks = max(1, min(nodes, cores // 4)), max(1, cores // 16)
    others = scorers * SCORE_CPUS + splitters * SPLIT_CPUS + sinks * SINK_CPUS
    analyzers = max(1, min(cores, int((cpus - others) / ANALYZE_CPUS)))
    return splitters, analyzers, scorers, sinks


def _shares(use_gpu: bool) -> dict[str, tuple[float, int]]:
    """(cores, GPUs) of one actor of each of STAGES."""
    return {
        "split": (SPLIT_CPUS, 0),
        "analyze": (ANALYZE_CPUS, 0),
        "score": (SCORE_CPUS, 1 if use_gpu else 0),
        "sink": (SINK_CPUS, 0),
    }


def _placed(rooms: Sequence[Room], wanted: Sequence[int], use_gpu: bool) -> Counter[str]:
    """How many actors of each stage find a node: one of each first, and each where it leaves the least behind."""
    free = [[room.gpus, room.cpus] for room in rooms]
    shares, placed = _shares(use_gpu), Counter[str]()
    more = {stage: count - 1 for stage, count in zip(STAGES, wanted, strict=True)}
    # Those that need most go first: a GPU and a core beside it, then most of a core.
    order = sorted(STAGES, key=lambda stage: shares[stage][::-1], reverse=True)
    for stage in [*order, *(another for another in order for _ in range(more[another]))]:
        cpus, gpus = shares[stage]
        fitting = [room for room in free if room[0] >= gpus - TOLERANCE and room[1] >= cpus - TOLERANCE]
        if fitting:
            best = min(fitting)  # nodes without GPUs before those with
            best[0] -= gpus
            best[1] -= cpus
            placed[stage] += 1
    return placed


def _no_place(stage: str, cpus: float, gpus: int, rooms: Sequence[Room]) -> str:
    needs = f"{cpus:g} CPU{' and a whole GPU' if gpus else ''} free on one node"
    best = sorted(rooms, key=lambda room: (room.gpus, room.cpus), reverse=True)
    found = ", ".join(f"{room.address} has {room.cpus:g} CPUs and {room.gpus:g} GPUs" for room in best[:SHOWN_NODES])
    more = f", {len(best) - SHOWN_NODES} nodes have less" if len(best) > SHOWN_NODES else ""
    mend = "start Ray there with a core for each GPU, or scan with --gpus 0" if gpus else "add a node with 2 CPUs"
    return f"an actor that is to {STAGES[stage]} needs {needs}, but {found}{more}: {mend}."


def _plan(splitters: int, analyzers: int, scorers: int, sinks: int, *, use_gpu: bool) -> Plan:
    batch = SPANS_PER_GPU_BATCH if use_gpu else 1
    return Plan(
        analyzers=analyzers,
        scorers=scorers,
        device="cuda" if use_gpu else "cpu",
        split=_pool(splitters, SPLIT_CPUS),
        analyze=_pool(analyzers, ANALYZE_CPUS),
        score=_pool(scorers, SCORE_CPUS, num_gpus=1 if use_gpu else 0, batch_size=batch),
        sink=_pool(sinks, SINK_CPUS, batch_size=batch),
    )


def _pool(size: int, cpus: float, **more: Any) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy  # `doctor` must be able to say that it can't be imported

    # Two tasks in flight: the next span's bytes are there when the last one is done.
    pool = ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2)
    return {"compute": pool, "num_cpus": cpus, **more}
