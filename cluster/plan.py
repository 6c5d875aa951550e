"""How many actors of which kind a cluster gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.data import ActorPoolStrategy

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
    """Actor pools for so many cores and GPUs; cpus >= MIN_CPUS."""
    use_gpu = gpus >= 1
    cores = max(1, int(cpus))
    # More GPUs than cores would starve, and their actors take shares of the cores as well.
    scorers = min(int(gpus), cores) if use_gpu else max(1, int(cpus / CORES_PER_CPU_SCORER))
    splitters, sinks = max(1, min(nodes, cores // 4)), max(1, cores // 16)
    others = scorers * SCORE_CPUS + splitters * SPLIT_CPUS + sinks * SINK_CPUS
    analyzers = max(1, min(cores, int((cpus - others) / ANALYZE_CPUS)))
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
    # Two tasks in flight: the next span's bytes are there when the last one is done.
    pool = ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2)
    return {"compute": pool, "num_cpus": cpus, **more}
