"""Code that runs where something else is mounted: full disks, read-only ones."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest


def in_namespace(mount: str, code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with something mounted first; skips where unprivileged mounts are not allowed."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this machine allows no mount namespaces")
    shell = f'{mount} && exec "$0" -c "$@"'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell, sys.executable, code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
