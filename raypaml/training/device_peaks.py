"""The peak arithmetic rates of GPUs, by the names that torch gives them."""

from __future__ import annotations

from typing import Literal

Arithmetic = Literal["bfloat16", "tf32", "float32"]
Rates = dict[Arithmetic, float]

_H100: Rates = {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9}
_H100_NVL: Rates = {"bfloat16": 835.5, "tf32": 417.5, "float32": 60.0}
_A100: Rates = {"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5}

TFLOPS: dict[str, Rates] = {
    "NVIDIA H200 NVL": _H100_NVL,
    "NVIDIA H200": _H100,
    "NVIDIA H100 NVL": _H100_NVL,
    "NVIDIA H100 PCIe": {"bfloat16": 756.0, "tf32": 378.0, "float32": 51.0},
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA GH200 480GB": _H100,
    "NVIDIA A100-SXM4": _A100,
    "NVIDIA A100-PCIE": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA L40S": {"bfloat16": 362.05, "tf32": 183.0, "float32": 91.6},
    "NVIDIA L4": {"bfloat16": 121.0, "tf32": 60.0, "float32": 30.3},
    "Tesla V100-SXM2": {"float32": 15.7},
    "Tesla V100-PCIE": {"float32": 14.0},
    "Tesla T4": {"float32": 8.1},
}
"""Peak rates in 10^12 operations per second, without sparsity, by the beginning of the device's name.

Source: NVIDIA's datasheets of H100, H200, GH200, A100, L40S, L4, V100 and T4; rates stated with sparsity are halved. A
multiplication and an addition count as two operations. AWS's A10G is left out, because NVIDIA publishes only the rates
of the A10, which the A10G does not reach.
"""


def peak_flops(device_name: str, arithmetic: Arithmetic) -> float | None:
    """The peak rate of a GPU in operations per second; None where it is not known, as for a part of a GPU (MIG).

    The longest matching name of `TFLOPS` counts. A GPU without TF32 computes in float32 instead.
    """
    if "MIG" in device_name:
        return None
    fitting = [name for name in TFLOPS if device_name == name or device_name.startswith((f"{name}-", f"{name} "))]
    rates: Rates = TFLOPS[max(fitting, key=len)] if fitting else {}
    if arithmetic == "tf32" and "tf32" not in rates:
        arithmetic = "float32"
    return rates[arithmetic] * 1e12 if arithmetic in rates else None
