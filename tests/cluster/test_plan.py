"""Planning: every actor fits on the cores that there are, and what can't fit is refused before the run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray._private.utils import check_version_info

from cluster.connect import (
    MIN_OBJECT_STORE,
    OBJECT_STORE_BYTES,
    Resources,
    _check,
    _first_line,
    _other_versions,
    object_store_bytes,
    resources_here,
)
from cluster.plan import MIN_CPUS, Plan, Room, make_plan, plan_for
from scanner.errors import EXIT_PREFLIGHT, UserError


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
    assert plan.score["batch_size"] == plan.sink["batch_size"] > 1


@pytest.mark.parametrize(("cpus", "analyzers"), [(2, 2), (4, 4), (8, 8), (64, 64)])
def test_as_many_videos_are_analysed_at_once_as_there_are_cores(cpus, analyzers):
    assert make_plan(cpus, 0).analyzers == analyzers
    assert make_plan(cpus, 1).analyzers == analyzers


def test_a_fraction_of_a_gpu_is_none():
    assert make_plan(4, 0.5).device == "cpu"


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


# --- before the run -------------------------------------------------------------------------------------


def refused(resources: Resources, wanted: int | None, found: float) -> str:
    with pytest.raises(UserError) as caught:
        _check(resources, wanted, found, resources.cpus)
    assert caught.value.exit_code == EXIT_PREFLIGHT
    return str(caught.value)


def test_too_few_cores_are_refused_with_the_fix():
    assert "1 of 1 CPUs free, and a scan needs 2" in refused(Resources(1, 0, 1, True), None, 0)
    assert "0 of 0 CPUs" in refused(Resources(0, 8, 1, False), None, 8)


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
    assert _first_line(ValueError("no cluster\n  at line 5\n")) == "no cluster"
    assert _first_line(TimeoutError()) == "TimeoutError"
