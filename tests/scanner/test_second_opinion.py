"""Which decoder is asked when, and whose failure counts."""

from __future__ import annotations

import pytest

from scanner.decode import DecodeError
from scanner.guard import GuardFailure
from scanner.results import Status
from scanner.second_opinion import DecordGaveUp, with_second_opinion

HUNG, DIED, LARGE = (GuardFailure(s, s.value) for s in (Status.TIMEOUT, Status.CRASHED, Status.TOO_LARGE))
REFUSED = DecodeError("damaged")


@pytest.mark.parametrize(
    ("pyav", "decord", "asked", "answer"),
    [
        ("frames", None, ["pyav"], "frames"),
        (HUNG, "frames", ["pyav", "decord"], "frames"),
        (DIED, "frames", ["pyav", "decord"], "frames"),
        (HUNG, DIED, ["pyav", "decord"], HUNG),
        (DIED, DecordGaveUp("no usable timestamps"), ["pyav", "decord"], DIED),
        (LARGE, None, ["pyav"], LARGE),  # decord takes more memory, not less
        (REFUSED, None, ["pyav"], REFUSED),
    ],
)
def test_decord_is_asked_where_pyav_hangs_or_dies_and_pyavs_failure_counts(pyav, decord, asked, answer):
    order: list[str] = []

    def run(decoder: str) -> str:
        order.append(decoder)
        outcome = {"pyav": pyav, "decord": decord}[decoder]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    if isinstance(answer, Exception):
        with pytest.raises(type(answer)) as raised:
            with_second_opinion(run)
        assert raised.value is answer
    else:
        assert with_second_opinion(run) == answer
    assert order == asked
