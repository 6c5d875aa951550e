"""Workers that an autoscaling cluster has yet to start: calling them before a scan."""

from __future__ import annotations

import time
from collections import Counter

from cluster.connect import attach, disconnect
from cluster.entrypoint import Workers
from cluster.plan import MIN_CPUS
from scanner.errors import EXIT_PREFLIGHT, UserError

POLL_S = 1.0


def wait_for_workers(workers: Workers, address: str = "auto") -> tuple[int, int]:
    """Make the autoscaler start so many CPUs and GPUs, and wait until they are free, or until the timeout.

    Returns the (CPUs, GPUs) that came. Raises UserError (exit code 4) where no scan fits them.

    Each core and each GPU is claimed by a placement group of its own, so that some are met where not all can be.
    Ray drops these claims with this process, however it ends; a request to the autoscaler itself would outlive it
    and keep the workers running for ever.
    """
    attach(address)
    try:
        from ray.util.placement_group import placement_group, placement_group_table

        wanted = ["CPU"] * workers.cpus + ["GPU"] * workers.gpus
        claims = {placement_group([{kind: 1}]).id.hex(): kind for kind in wanted}
        deadline = time.monotonic() + workers.timeout_minutes * 60
        while True:
            met = Counter(
                claims[name]
                for name, row in placement_group_table().items()
                if name in claims and row["state"] == "CREATED"
            )
            if met.total() == len(claims) or time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
    finally:
        disconnect()
    if met["CPU"] < MIN_CPUS:
        raise UserError(
            f"no workers came within {workers.timeout_minutes:g} minutes ({met['CPU']} CPUs are free):"
            " `deepsweep cluster status` and the autoscaler's log on the head say why.",
            EXIT_PREFLIGHT,
        )
    return met["CPU"], met["GPU"]
