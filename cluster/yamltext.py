"""YAML as people read it: in the given order, and every part written out where it belongs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def yaml_text(documents: Sequence[Any]) -> str:
    """The documents as one YAML stream, with `---` between them."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=110)
