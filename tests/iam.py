"""What IAM answers: whether a policy allows an action on a resource in a context. Enough of it for the policies here.

moto compares names of actions alone. Here resources and conditions count too, as in
docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html: what no statement allows is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raypaml.cluster.aws_permissions import CALLS, Call, Permission, names

ROOT = Path(__file__).parent.parent
POLICIES = ROOT / "clusters" / "policies"
ACCOUNT = "123456789012"  # of moto

Policy = Mapping[str, Any]


def policy(name: str, bucket: str = "bucket") -> Policy:
    """A policy of clusters/policies, with the bucket's name put in."""
    found: Policy = json.loads((POLICIES / f"{name}.json").read_text().replace("YOUR-BUCKET", bucket))
    return found


def allows(policies: Iterable[Policy], asked: Permission) -> bool:
    return any(_applies(statement, asked) for one in policies for statement in one["Statement"])


def _applies(statement: Mapping[str, Any], asked: Permission) -> bool:
    assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"}, statement
    assert statement["Effect"] == "Allow"
    return (
        any(_matches(pattern, asked.action, re.IGNORECASE) for pattern in listed(statement["Action"]))
        and any(_matches(pattern, asked.resource) for pattern in listed(statement["Resource"]))
        and all(
            _condition(operator, asked.context.get(key), listed(values))
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        )
    )


def _condition(operator: str, actual: str | None, values: list[str]) -> bool:
    assert operator == "StringEquals", f"{operator} is not known here"
    return actual in values


def _matches(pattern: str, text: str, flags: int = 0) -> bool:
    """With * for any text and ? for one character."""
    parts = (".*" if part == "*" else "." if part == "?" else re.escape(part) for part in re.split(r"([*?])", pattern))
    return re.fullmatch("".join(parts), text, flags) is not None


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def implied(call: Call, values: Mapping[str, str | None]) -> list[Permission]:
    """What IAM is asked for a call with these values; without what is about a thing (None) that the call leaves out."""
    there = {name: value for name, value in values.items() if value is not None}
    return [need.of(there) for need in call.needs if names(need) <= set(there)]


def call_of(action: str) -> Call | None:
    """The call of this name that `aws.yaml` makes."""
    return next((call for call in CALLS if call.needs[0].action == action and not call.unless), None)
