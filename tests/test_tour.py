"""tools/tour.ipynb: its cells run one after the other in an empty folder, and it is kept without outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = json.loads((ROOT / "tools" / "tour.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
RUNNER = """
import json, sys
cells = json.load(sys.stdin)
space = {"__name__": "__main__"}
for source in cells:
    exec(compile(source, "cell", "exec"), space)
found = [one["name"] for one in space["found"]]
figures = {"epochs": len(space["records"]), "labels": space["first"]["labels"].split(), "found": found}
print(json.dumps(figures | {"map": list(space["cam"].shape), "mean_ap": space["run"].result["mean_ap"]}))
"""


def test_it_is_kept_without_outputs() -> None:
    assert CELLS
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)


@pytest.mark.cluster
def test_its_cells_run_in_an_empty_folder(tmp_path: Path) -> None:
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNER],
        input=json.dumps(["".join(cell["source"]) for cell in CELLS]),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["epochs"], figures["map"]) == (10, [8, 8])
    assert figures["mean_ap"] > 0.95
    assert sorted(figures["found"]) == sorted(figures["labels"])
    for name in ("runs/tour/audit/index.html", "runs/tour/export/model_card.md", "runs/tour/alpha_of_use.json"):
        assert (tmp_path / "tour" / name).is_file(), name
