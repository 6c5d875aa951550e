"""What every stage of a running dataset waits for, as Ray Data's executor in this process knows it."""

from __future__ import annotations

import re
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanner.watchdog import LOOK_S, bounded, minutes

#: The folders of deepsweep's own code; the environment it runs in may lie beside them.
OWN = tuple(f"{Path(__file__).parents[1] / room}/" for room in ("scanner", "cluster", "models", "queries"))
_GROWING = ("num_inputs_received", "num_tasks_finished", "num_outputs_taken")


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline at one moment. Counts are of blocks: a span, or a list of videos each."""

    name: str
    waiting: int  # for this stage
    tasks: int  # handed to its actors
    oldest_s: float  # since the first of these was handed over; 0 where there is none
    done: int  # tasks that have ended
    running: int  # actors
    starting: int
    restarting: int
    needs: str  # of one actor, such as "0.7 CPU"
    held_back: bool  # Ray gives it nothing more, for want of memory or because the next stage lags behind
    finished: bool


def pulse() -> tuple[int, ...]:
    """Counters of all stages that only ever grow: another answer means that something has moved. Asks nobody."""
    operators = [operator for executor in _executors() for operator in list(executor._topology or ())]
    return tuple(getattr(operator.metrics, name, 0) for operator in operators for name in _GROWING)


def forget_blocks() -> None:
    """Drop the figures that Ray Data keeps of every block until the end, 1 KB each: nobody reads them."""
    for executor in _executors():
        for operator in list(executor._topology or ()):
            getattr(operator, "_output_blocks_stats", []).clear()


def diagnose() -> list[str]:
    """What everything waits for, in sentences: the stages, the nodes, the driver. Takes up to LOOK_S."""
    stages = [stage for executor in _executors() for stage in read_stages(executor)]
    return [*stage_sentences(stages), *(bounded(_nodes, LOOK_S / 2) or [_NO_NODES]), _driver()]


def read_stages(executor: Any) -> list[Stage]:
    """The stages of one Ray Data executor, first to last, without its input."""
    stages = []
    for operator, state in list(executor._topology.items()):
        if not operator.input_dependencies:
            continue
        started = [task.start_time for task in list(operator.metrics._running_tasks.values())]
        actors = operator.get_actor_info()
        stages.append(
            Stage(
                name=_stage_name(operator.name),
                waiting=state.total_enqueued_input_blocks(),
                tasks=len(started),
                oldest_s=time.perf_counter() - min(started) if started else 0.0,
                done=operator.metrics.num_tasks_finished,
                running=actors.running - actors.restarting,
                starting=actors.pending,
                restarting=actors.restarting,
                needs=_needs(getattr(operator, "_ray_remote_args", {})),
                held_back=operator._in_task_submission_backpressure,
                finished=operator.has_completed(),
            )
        )
    return stages


def stage_sentences(stages: Sequence[Stage]) -> list[str]:
    """One sentence for each stage that has not ended."""
    if not stages:
        return ["No stage of the scan is running yet."]
    sentences, before = [], "the list of videos"
    for stage in stages:
        if not stage.finished:
            sentences.append(f"{stage.name}: {_waits_for(stage, before)}.")
        before = stage.name
    return sentences or ["All stages have ended."]


def _waits_for(stage: Stage, before: str) -> str:
    behind = f"; {stage.waiting:,} more wait" if stage.waiting else ""
    if not stage.running and stage.restarting:
        return f"its {_actors(stage.restarting)} died and could not be started again yet{behind}"
    if not stage.running and stage.starting:
        return (
            f"none of its {_actors(stage.starting)} could be started: each needs {stage.needs} free on one node{behind}"
        )
    if stage.tasks:
        work = "1 task has" if stage.tasks == 1 else f"{stage.tasks:,} tasks have"
        return f"{work} not ended, the first begun {minutes(stage.oldest_s)} ago{behind}; {stage.done:,} had ended"
    if stage.waiting and stage.held_back:
        return f"{stage.waiting:,} wait, but Ray holds them back until the stages after it have taken what is finished"
    if stage.waiting:
        return f"{stage.waiting:,} wait, but Ray hands none of them to its {_actors(stage.running)}"
    return f"waits for {before}"


def _actors(count: int) -> str:
    return "1 actor" if count == 1 else f"{count} actors"


def _executors() -> list[Any]:
    """The executors of this process. Ray Data runs each in a thread, which is the only place to find it."""
    module = sys.modules.get("ray.data._internal.execution.streaming_executor")
    kind = getattr(module, "StreamingExecutor", None)  # not there while Ray Data is being imported
    return [] if kind is None else [thread for thread in threading.enumerate() if isinstance(thread, kind)]


def _stage_name(operator: str) -> str:
    """`Analyze` of `Map(Analyze)`."""
    inner = re.fullmatch(r"\w+\((.*)\)", operator)
    return inner[1] if inner else operator


def _needs(remote_args: dict[str, Any]) -> str:
    wanted = {"CPU": remote_args.get("num_cpus"), "GPU": remote_args.get("num_gpus")}
    return " and ".join(f"{amount:g} {kind}" for kind, amount in wanted.items() if amount) or "its resources"


_NO_NODES = "The cluster's head does not answer."


def _nodes() -> list[str]:
    """What became of the cluster's nodes, and what is free on them."""
    import ray

    if not ray.is_initialized():
        return ["Ray is not connected."]
    nodes = ray.nodes()
    dead = [node["NodeManagerAddress"] for node in nodes if not node["Alive"]]
    lost = [f"{len(dead)} of {len(nodes)} nodes are lost: {', '.join(dead)}."] if dead else []
    free = ray.available_resources()
    return [*lost, f"Free in the cluster: {free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs."]


def _driver() -> str:
    """Where the main thread is: the innermost line of deepsweep's own, and the innermost of all."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = traceback.extract_stack(frame) if frame else []
    if not stack:
        return "The driver's main thread has ended."
    own = next((place for place in reversed(stack) if place.filename.startswith(OWN)), stack[-1])
    places = dict.fromkeys(f"{place.name} ({place.filename}:{place.lineno})" for place in (own, stack[-1]))
    return f"The driver is in {', and there in '.join(places)}."
