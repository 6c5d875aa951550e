"""How often a piece of work was begun: counted in the cluster's memory, which outlives the process that does it.

Ray starts an actor that died again and repeats its task, for ever: a span over which the process dies each time,
killed for want of memory, say, would keep a scan from its end.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scanner.errors import UserError

MOST = 3  # deaths over the same work: one may be a lost node, or chance, three are the work's doing
DIED = f"the process that worked on it was killed {MOST} times, for want of memory on its node mostly"

_NAMESPACE = b"deepsweep"


class ProcessLost(UserError):
    """This process can do nothing more, whoever is to blame. Counts as its death: who catches it ends the process."""


@contextmanager
def attempt(*work: str | int) -> Iterator[bool]:
    """Whether this work may be tried (again); what was counted is forgotten when the block ends.

    work: what identifies it, the same at every attempt. Without Ray nothing repeats itself: always true.
    """
    if not _ray_runs():
        yield True
        return
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

    key = _key(work)
    if _internal_kv_put(key, b"1", overwrite=False, namespace=_NAMESPACE):  # there already
        begun = int(_internal_kv_get(key, namespace=_NAMESPACE) or 0) + 1
        _internal_kv_put(key, str(begun), namespace=_NAMESPACE)
    else:
        begun = 1
    try:
        yield begun <= MOST
    except ProcessLost:
        raise
    except BaseException:  # work that raised has not killed its process
        _internal_kv_del(key, namespace=_NAMESPACE)
        raise
    _internal_kv_del(key, namespace=_NAMESPACE)


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")  # not imported for this: inspecting one video does without
    return ray is not None and ray.is_initialized()


def _key(work: Sequence[str | int]) -> bytes:
    text = "\0".join(map(str, work))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
