"""Measures the kernels that a call runs on the device: their time, their number and their kinds."""

from __future__ import annotations

import re
import time
from collections import Counter

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tools.bench.method import Run

CALLS = 3
KINDS = (
    ("compiled", r"triton_"),
    ("batch norm", r"batch_?norm|\bbn_|bn_(fw|bw)"),
    ("products", r"gemm|nvjet|cutlass|xmma|implicit|cudnn|conv"),
    ("optimizer", r"multi_tensor"),
    ("copies", r"Memcpy|Memset|copy"),
    ("sums", r"reduce_kernel"),
    ("elementwise", r"elementwise"),
)
"""Kinds of kernels and a pattern of their names; the first that matches is the kind."""


def kernels_told(run: Run, device: str) -> str:
    """Describes the kernels of a call: the mean over a few calls, after a warm-up.

    A CPU has no kernels: there the text is the number of operations, including nested ones.
    """
    run()
    is_cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as tracer:
        began = time.perf_counter()
        for _ in range(CALLS):
            run()
        if is_cuda:
            torch.cuda.synchronize()
        milliseconds = 1e3 * (time.perf_counter() - began) / CALLS
    if not is_cuda:
        return f"{len(tracer.events()) / CALLS:,.0f} operations"
    kernels = [event for event in tracer.events() if event.device_type == DeviceType.CUDA]
    busy = Counter[str]()
    for kernel in kernels:
        busy[kernel_kind(kernel.name)] += kernel.time_range.elapsed_us() / 1e3 / CALLS
    kinds = ", ".join(f"{kind} {spent:.2f}" for kind, spent in busy.most_common())
    return f"{busy.total():.2f} of {milliseconds:.1f} ms busy, {len(kernels) / CALLS:,.0f} kernels: {kinds}"


def kernel_kind(name: str) -> str:
    """Returns the kind of the kernel of this name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), "others")
