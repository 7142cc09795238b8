"""What Ray is told where nothing else is said, before it is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "expected"), [({}, "0"), ({"RAY_worker_niceness": "7"}, "7")])
def test_workers_of_a_private_cluster_yield_to_nobody(given: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_worker_niceness"}
    code = "import os, raypaml.cluster; print(os.environ['RAY_worker_niceness'])"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == expected
