"""Planning: every actor fits on the cores that there are, and what can't fit is refused before the run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray._private.utils import check_version_info

from cluster.connect import (
    MIN_OBJECT_STORE,
    OBJECT_STORE_BYTES,
    Resources,
    _check,
    _other_versions,
    object_store_bytes,
    resources_here,
)
from cluster.growth import rooms_of
from cluster.plan import (
    ANALYZERS_PER_BATCHED_SPAN,
    ANALYZERS_PER_WRITTEN_SPAN,
    FULL_SPANS_PER_TASK,
    MIN_CPUS,
    SPANS_PER_GPU_BATCH,
    SPANS_PER_PART,
    VIDEOS_PER_ANALYZER,
    Plan,
    Room,
    make_plan,
    plan_for,
)
from models.registry import load_spec
from scanner.config import ScanConfig
from scanner.errors import EXIT_PREFLIGHT, EXIT_USAGE, UserError, first_line
from scanner.tracking import MAX_FACES


def pools(plan: Plan) -> dict[str, tuple[int, float]]:
    """(actors, share of a core each) by stage."""
    stages = {"split": plan.split, "analyze": plan.analyze, "score": plan.score, "sink": plan.sink}
    return {name: (stage["compute"].min_size, stage["num_cpus"]) for name, stage in stages.items()}


cores = st.one_of(st.integers(2, 2000).map(float), st.floats(MIN_CPUS, 64))


@given(cores, st.integers(0, 64), st.integers(1, 100))
def test_all_actors_fit_at_once(cpus, gpus, nodes):
    plan = make_plan(cpus, gpus, nodes)
    sizes = pools(plan)
    assert all(size >= 1 for size, _ in sizes.values())
    assert sum(size * share for size, share in sizes.values()) <= cpus
    assert plan.scorers * plan.score["num_gpus"] <= gpus
    assert (plan.analyzers, plan.scorers) == (sizes["analyze"][0], sizes["score"][0])


@given(cores)
def test_without_a_gpu_clips_are_scored_on_the_cpu_one_span_at_a_time(cpus):
    plan = make_plan(cpus, 0)
    assert (plan.device, plan.score["num_gpus"], plan.score["batch_size"]) == ("cpu", 0, 1)
    assert plan.analyzers >= plan.scorers


@given(cores, st.integers(1, 64))
def test_every_gpu_that_the_cores_can_feed_is_used_in_batches(cpus, gpus):
    plan = make_plan(cpus, gpus)
    assert (plan.device, plan.score["num_gpus"]) == ("cuda", 1)
    assert plan.scorers == min(gpus, int(cpus))
    assert plan.score["batch_size"] >= 1 and plan.sink["batch_size"] >= 1


@pytest.mark.parametrize(("cpus", "analyzers"), [(2, 2), (4, 4), (8, 8), (64, 64)])
def test_as_many_videos_are_analysed_at_once_as_there_are_cores(cpus, analyzers):
    assert make_plan(cpus, 0).analyzers == analyzers
    assert make_plan(cpus, 1).analyzers == analyzers


# --- on the nodes that there are ------------------------------------------------------------------------

rooms = st.lists(st.builds(Room, st.just("n"), st.floats(0, 16), st.integers(0, 8).map(float)), min_size=1, max_size=6)


@given(rooms, st.integers(0, 16))
def test_every_actor_of_a_plan_has_a_place_or_the_plan_is_refused(nodes, gpus):
    gpus = min(gpus, int(sum(room.gpus for room in nodes)))
    try:
        plan = plan_for(nodes, gpus)
    except UserError as refusal:
        assert refusal.exit_code == EXIT_PREFLIGHT
        return
    sizes = pools(plan)
    assert all(size >= 1 for size, _ in sizes.values())
    assert sum(size * share for size, share in sizes.values()) <= sum(room.cpus for room in nodes) + 1e-6
    on_one_node = {
        stage: sum(
            min(
                int(room.cpus / share + 1e-6), int(room.gpus) if stage == "score" and plan.device == "cuda" else 1 << 30
            )
            for room in nodes
        )
        for stage, (_, share) in sizes.items()
    }
    assert all(size <= on_one_node[stage] for stage, (size, _) in sizes.items())


@given(cores, st.integers(0, 8))
def test_on_one_node_nothing_is_left_out(cpus, gpus):
    assert pools(plan_for([Room("n", cpus, float(gpus))], gpus)) == pools(make_plan(cpus, gpus))


def test_a_gpu_without_a_core_beside_it_is_refused_with_the_fix():
    with pytest.raises(UserError) as caught:
        plan_for([Room("10.0.0.1", 8), Room("10.0.0.2", 0.0, 4.0)], 4)
    assert "0.3 CPU and a whole GPU" in str(caught.value) and "10.0.0.2 has 0 CPUs and 4 GPUs" in str(caught.value)
    assert "--gpus 0" in str(caught.value) and caught.value.exit_code == EXIT_PREFLIGHT


def test_crumbs_of_cores_make_no_place():
    with pytest.raises(UserError, match=r"to analyse videos needs 0\.7 CPU free on one node, but n has 0\.5 CPUs"):
        plan_for([Room("n", 0.5)] * 6, 0)


def test_actors_that_find_no_place_are_left_out_of_the_plan():
    assert make_plan(4, 0).analyzers == 4
    assert plan_for([Room("a", 1), Room("b", 1), Room("c", 2)], 0).analyzers == 4
    assert plan_for([Room("a", 2)] + [Room(str(n), 0.5) for n in range(4)], 0).analyzers == 2


def test_a_gpu_is_kept_for_the_scorer():
    plan = plan_for([Room("gpu", 1, 1.0), Room("cpu", 3)], 1)
    assert (plan.device, plan.scorers) == ("cuda", 1) and plan.analyzers >= 4


# --- memory ---------------------------------------------------------------------------------------------

GIB = 1 << 30


def test_a_node_with_many_cores_and_little_memory_gets_fewer_analysers_and_says_so():
    plan = plan_for([Room("n", 16, memory=10 * GIB)], 0, memory_limit=3 * GIB)
    assert (plan.analyzers, plan.short_of_memory) == (3, 13)
    assert plan.analyze["memory"] == 3 * GIB, "Ray keeps it free on whatever node the actor comes to"
    assert "memory" not in plan.score


def test_memory_is_counted_node_by_node():
    rooms = [Room("a", 8, memory=5 * GIB), Room("b", 8, memory=40 * GIB)]
    assert plan_for(rooms, 0, memory_limit=3 * GIB).analyzers == 1 + 11


def test_a_machine_with_less_than_one_analyser_may_take_has_one_all_the_same():
    plan = plan_for([Room("n", 4, memory=2 * GIB)], 0, memory_limit=3 * GIB)
    assert (plan.analyzers, plan.analyze["memory"]) == (1, 2 * GIB)


@given(cores, st.integers(0, 8))
def test_without_a_known_limit_memory_changes_nothing(cpus, gpus):
    room = Room("n", cpus, float(gpus))
    assert pools(plan_for([room], gpus, memory_limit=3 * GIB)) == pools(plan_for([room], gpus))


# --- clusters that grow -----------------------------------------------------------------------------------

WORKER = Room("cpu", 16, memory=60.0 * GIB)
GPU_WORKER = Room("gpu", 4, 1.0, 15.0 * GIB)


def limits(plan: Plan) -> dict[str, tuple[int, int]]:
    """(fewest, most) actors by stage."""
    stages = {"split": plan.split, "analyze": plan.analyze, "score": plan.score, "sink": plan.sink}
    pools = {name: stage["compute"] for name, stage in stages.items()}
    return {name: (pool.min_size, pool.max_size) for name, pool in pools.items()}


def test_pools_grow_to_what_the_cluster_may_become_and_shrink_to_what_there_was():
    plan = plan_for([WORKER], 0, 3 * GIB, [WORKER] * 8)
    assert limits(plan)["analyze"] == (plan.analyzers, plan.most_analyzers)
    assert plan.most_analyzers == 8 * plan.analyzers
    assert limits(plan)["score"][1] > limits(plan)["score"][0]


def test_gpus_to_come_are_used_up_to_the_limit_that_was_asked_for():
    now, grown = [WORKER, GPU_WORKER], [WORKER] * 4 + [GPU_WORKER] * 3
    assert plan_for(now, 1, 3 * GIB, grown).most_scorers == 3
    assert plan_for(now, 1, 3 * GIB, grown, most_gpus=2).most_scorers == 2


def test_what_scores_on_the_cpu_at_first_does_so_to_the_end():
    plan = plan_for([WORKER], 0, 3 * GIB, [WORKER] * 2 + [GPU_WORKER])
    assert (plan.device, plan.score["num_gpus"]) == ("cpu", 0)


def test_an_autoscaler_that_knows_of_no_memory_is_not_asked_for_any():
    assert "memory" not in plan_for([WORKER], 0, 3 * GIB, [Room("cpu", 16)] * 2).analyze


def limits_of(most: int, **kinds: tuple[int, dict[str, int]]) -> dict[str, Any]:
    """What an autoscaler may start: (most, resources) by kind."""
    types = {name: {"max_workers": count, "resources": has} for name, (count, has) in kinds.items()}
    return {"max_workers": most, "head_node_type": "head", "available_node_types": types}


def test_spot_instances_and_their_fallback_share_what_one_kind_is_allowed():
    cpu, gpu = {"CPU": 16, "memory": 60 * GIB}, {"CPU": 4, "GPU": 1, "memory": 15 * GIB}
    limits = limits_of(9, head=(0, {"CPU": 4}), cpu_spot=(8, cpu), cpu=(8, cpu), gpu_spot=(1, gpu), gpu=(1, gpu))
    assert rooms_of(limits) == (replace(GPU_WORKER, address=""), *[replace(WORKER, address="")] * 8)
    assert [room.gpus for room in rooms_of(limits | {"max_workers": 3})] == [1, 0, 0], "the cluster's own limit holds"


def test_a_cluster_that_says_nothing_does_not_grow_and_what_it_does_not_say_has_no_limit():
    assert rooms_of({}) == rooms_of(limits_of(4, cpu=(0, {"CPU": 8}), odd=(4, {}))) == ()
    unlimited = {"max_workers": 2, "available_node_types": {"cpu": {"resources": {"CPU": 8}}}}
    assert rooms_of(unlimited) == (Room("", 8),) * 2


@given(rooms, st.lists(st.sampled_from([WORKER, GPU_WORKER]), max_size=4), st.integers(0, 8))
def test_pools_never_begin_with_more_than_they_may_have(nodes, grown, gpus):
    gpus = min(gpus, int(sum(room.gpus for room in nodes)))
    try:
        plan = plan_for(nodes, gpus, 3 * GIB, grown)
    except UserError:
        return
    assert all(1 <= fewest <= most for fewest, most in limits(plan).values())


# --- GPUs -------------------------------------------------------------------------------------------------


def test_several_gpus_of_a_node_have_a_scorer_each():
    plan = plan_for([Room("n", 16, 4.0)], 4)
    assert (plan.scorers, plan.score["num_gpus"]) == (4, 1)


def test_a_share_of_a_gpu_leaves_the_rest_to_others():
    plan = plan_for([Room("n", 8, 1.0)], 0.5)
    assert (plan.device, plan.scorers, plan.score["num_gpus"]) == ("cuda", 1, 0.5)
    with pytest.raises(UserError, match=r"needs 0\.3 CPU and 0\.5 of a GPU free on one node"):
        plan_for([Room("n", 8, 0.2)], 0.5)


def test_one_and_a_half_gpus_are_refused():
    assert "write 2, or 0.5" in refused(Resources(8, 1.5, 1, True), 1.5, 4, code=EXIT_USAGE)


# --- batches ----------------------------------------------------------------------------------------------


@given(cores, st.integers(0, 8))
def test_a_batch_is_full_while_its_spans_are_young(cpus, gpus):
    plan = make_plan(cpus, gpus)
    scored, part = plan.score["batch_size"], plan.score["batch_size"] * plan.sink["batch_size"]
    assert scored == 1 or scored * ANALYZERS_PER_BATCHED_SPAN <= plan.analyzers
    assert part == 1 or part * ANALYZERS_PER_WRITTEN_SPAN <= plan.analyzers


def test_few_analysers_write_each_span_at_once():
    assert make_plan(2, 0).sink["batch_size"] == make_plan(4, 1).score["batch_size"] == 1
    plan = make_plan(128, 1)
    assert plan.score["batch_size"] * plan.sink["batch_size"] == SPANS_PER_PART
    assert make_plan(128, 0).sink["batch_size"] == SPANS_PER_PART


@given(cores, st.integers(0, 8), st.integers(0, 100_000))
def test_tasks_of_several_spans_come_with_many_videos_and_parts_hold_no_more_video_than_before(cpus, gpus, videos):
    before = make_plan(cpus, gpus)
    plan = before.for_videos(videos)
    assert (plan.spans_per_task > 1) == (videos >= VIDEOS_PER_ANALYZER * before.most_analyzers)
    in_a_row = FULL_SPANS_PER_TASK if plan.spans_per_task > 1 else 1
    assert plan.score == before.score and plan.sink["batch_size"] >= 1
    assert plan.score["batch_size"] * plan.sink["batch_size"] * in_a_row <= SPANS_PER_PART


def test_two_batches_of_crowded_spans_fit_into_a_nodes_object_store():
    spec = load_spec(ScanConfig().model)
    span = ScanConfig().span_seconds * spec.clip_fps * spec.input_size**2 * 3 * MAX_FACES
    assert 2 * SPANS_PER_GPU_BATCH * span < OBJECT_STORE_BYTES


# --- before the run -------------------------------------------------------------------------------------


def refused(resources: Resources, wanted: float | None, found: float, code: int = EXIT_PREFLIGHT) -> str:
    with pytest.raises(UserError) as caught:
        _check(resources, wanted, found, resources.cpus)
    assert caught.value.exit_code == code
    return str(caught.value)


def test_too_few_cores_are_refused_with_the_fix():
    assert "1 of 1 CPUs free, and a scan needs 2" in refused(Resources(1, 0, 1, True), None, 0)
    assert "0 of 0 CPUs" in refused(Resources(0, 8, 1, False), None, 8)


def test_a_cluster_whose_workers_have_yet_to_come_says_how_they_are_called():
    said = refused(Resources(0, 0, 1, False, grown=(WORKER,) * 8), None, 0)
    assert "0 of 0 CPUs free, and a scan needs 2" in said and "`deepsweep cluster submit --cpus N -- ...`" in said
    assert "add a node" not in said


def test_gpus_that_are_not_there_are_refused():
    said = refused(Resources(8, 1, 1, True), 2, 1)
    assert "--gpus 2" in said and "Ray sees 1" in said


@pytest.mark.parametrize(("wanted", "found"), [(None, 0), (None, 4), (0, 4), (2, 2), (1, 4)])
def test_what_fits_is_let_through(wanted, found):
    _check(Resources(2, found, 1, True), wanted, found, 2)


def test_the_object_store_has_room_within_what_is_free():
    assert MIN_OBJECT_STORE <= object_store_bytes() <= OBJECT_STORE_BYTES


def test_this_machine_is_fit_for_a_scan_on_the_cpu():
    here = resources_here(gpus=0)
    assert here.cpus >= 2 and here.gpus == 0 and here.local
    assert plan_for(here.rooms, here.gpus).device == "cpu"


def test_a_cluster_with_other_versions_says_which_and_the_fix():
    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": "2.1.0", "python_version": "3.9.1"}, "this one")
    said = _other_versions(caught.value)
    assert said is not None and said.startswith("runs Ray 2.1.0 on Python 3.9.1, and this process Ray ")
    assert "pip install 'ray[default]==2.1.0'" in said
    assert _other_versions(ConnectionError("nobody there")) is None


def test_errors_of_ray_are_cut_to_their_first_line():
    assert first_line(ValueError("no cluster\n  at line 5\n")) == "no cluster"
    assert first_line(TimeoutError()) == "TimeoutError"
