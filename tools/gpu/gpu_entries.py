"""What `python -m tools.gpu` runs, in the order of risk: what everything else needs comes first."""

from __future__ import annotations

from tools.gpu.gpu_checks import check_device, check_group, check_map, check_resume, check_tests
from tools.gpu.gpu_profile import measure_profile
from tools.gpu.gpu_rows import Entry
from tools.gpu.gpu_speed import measure_compiled, measure_head, measure_steps, measure_tars

ENTRIES = {
    "check": (
        Entry("device", check_device, 60),
        Entry("pytest -m gpu", check_tests, 240),
        Entry("digits stopped and continued", check_resume, 150),
        Entry("training and mAP on GPU and CPU", check_map, 120),
        Entry("process group of one rank", check_group, 60),
    ),
    "bench": (
        Entry("device", check_device, 60),
        Entry("steps without data", measure_steps, 200),
        Entry("head and loss", measure_head, 60),
        Entry("profile", measure_profile, 120),
        Entry("end to end from tars", measure_tars, 150),
        Entry("compiled steps", measure_compiled, 240),
    ),
}
