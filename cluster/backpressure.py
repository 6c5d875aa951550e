"""How far the stages of a dataset run ahead of each other, and how much of the object stores they fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY as POLICIES,
)
from ray.data._internal.execution.backpressure_policy import BackpressurePolicy

if TYPE_CHECKING:
    from ray.data import DataContext

RUN_AHEAD = 3.0  # bytes that may wait for a stage, in those that it works on
STORE_SHARE = 0.5  # of all object stores together: one may get more than its part, and holds copies of others' blocks


class RunAhead(BackpressurePolicy):
    """Gives a stage nothing while the next one lags behind, or while the stores are full and it would fill them more.

    At first each actor gets one task, and none to wait behind it. In place of Ray Data's own policies, and of its
    budgets of cores, GPUs and memory for each stage: it computes them anew for every block and task, which takes a
    third of the driver's time, and pools of actors have theirs from the plan. Where everything waits for something
    else, Ray Data gives out one more task all the same.
    """

    @classmethod
    def rule(cls, context: DataContext) -> None:
        """Let it decide alone in the datasets that are made from now on."""
        context.set_config(POLICIES, [cls])
        context.op_resource_reservation_enabled = False
        context.override_object_store_memory_limit_fraction = STORE_SHARE

    def can_add_input(self, op: Any) -> bool:
        """Whether the stage may get another task."""
        if self._is_ahead(op) or _has_its_first_tasks(op):
            return False
        return not (self._stores_are_full() and _makes_more_than_it_takes(op))

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """0 where what the stage's tasks have made stays with them for now; they then stop making more."""
        return 0 if self._is_ahead(op) else None

    def _is_ahead(self, op: Any) -> bool:
        for after in op.output_dependencies:
            works_on = after.metrics.obj_store_mem_pending_task_inputs
            if works_on and self._topology[after].total_enqueued_input_blocks_bytes() > RUN_AHEAD * works_on:
                return True
        return False

    def _stores_are_full(self) -> bool:
        # With what running tasks are about to make, as far as those before them tell.
        used = self._resource_manager.get_global_usage().object_store_memory
        return used >= self._resource_manager.get_global_limits().object_store_memory


def _has_its_first_tasks(op: Any) -> bool:
    # Until one of them has ended nobody knows how much they make: none is handed out to wait behind another.
    if op.metrics.average_bytes_outputs_per_task is not None:
        return False
    return op.num_active_tasks() >= max(1, op.get_actor_info().running)


def _makes_more_than_it_takes(op: Any) -> bool:
    takes, makes = op.metrics.average_bytes_inputs_per_task, op.metrics.average_bytes_outputs_per_task
    return takes is not None and makes is not None and makes > takes
