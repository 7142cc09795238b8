"""The quotas of EC2 that limit how many vCPUs of a kind of instance may run, and which one an instance type counts for.

Codes and families are those of docs.aws.amazon.com/ec2/latest/instancetypes/ec2-instance-quotas.html. All but those of
the standard families are 0 in a new account.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Quota:
    """One quota: vCPUs in a region, of everything in the account that counts for it."""

    code: str
    name: str

    @property
    def address(self) -> str:
        """The page where more is requested."""
        return f"https://console.aws.amazon.com/servicequotas/home/services/ec2/quotas/{self.code}"


_STANDARD = "Standard (A, C, D, H, I, M, R, T, Z)"
_ON_DEMAND = {
    "standard": Quota("L-1216C47A", f"Running On-Demand {_STANDARD} instances"),
    "g": Quota("L-DB2E81BA", "Running On-Demand G and VT instances"),
    "p": Quota("L-417A185B", "Running On-Demand P instances"),
    "trn": Quota("L-2C3B7624", "Running On-Demand Trn instances"),
    "inf": Quota("L-1945791B", "Running On-Demand Inf instances"),
    "dl": Quota("L-6E869C2A", "Running On-Demand DL instances"),
    "f": Quota("L-74FC7D96", "Running On-Demand F instances"),
    "x": Quota("L-7295265B", "Running On-Demand X instances"),
}
_P4 = Quota("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests")
_SPOT = {
    "standard": Quota("L-34B43A08", f"All {_STANDARD} Spot Instance Requests"),
    "g": Quota("L-3819A6DF", "All G and VT Spot Instance Requests"),
    "p2": _P4,
    "p3": _P4,
    "p4": _P4,
    "p5": Quota("L-C4BD4855", "All P5 Spot Instance Requests"),
    "trn": Quota("L-6B0D517C", "All Trn Spot Instance Requests"),
    "inf": Quota("L-B5D1601B", "All Inf Spot Instance Requests"),
    "dl": Quota("L-85EED4F7", "All DL Spot Instance Requests"),
    "f": Quota("L-88CF9481", "All F Spot Instance Requests"),
    "x": Quota("L-E3A00192", "All X Spot Instance Requests"),
}
_ALSO = {"vt": "g", "gr": "g"}
"""Families that count with another one."""
_OWN = ("trn", "inf", "dl", "hpc", "mac", "u", "f", "x", "p", "g")
"""Families that do not count as standard, although some begin with a letter of those."""


def quota_of(instance_type: str, *, spot: bool) -> Quota | None:
    """The quota that an instance type counts for; None where it is not known here."""
    match = re.match(r"([a-z]+)(\d*)", instance_type)
    if not match:
        return None
    family, generation = _ALSO.get(match[1], match[1]), match[2]
    if family not in _OWN and family[0] in "acdhimrtz":
        family = "standard"
    quotas = _SPOT if spot else _ON_DEMAND
    return quotas.get(family) or quotas.get(family + generation)
