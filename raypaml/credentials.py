"""Refuses credentials as settings, because settings are written into records and reports."""

from __future__ import annotations

import re
from collections.abc import Mapping

SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|hf_\w{20,}|://[^/@]+:[^/@]+@|(secret|token|password)[\w-]*=", re.I
)
"""Texts that look like credentials: keys of AWS and Hugging Face, `user:password@` in an address, `secret_key=...`."""


def check_no_credentials(settings: Mapping[str, object]) -> None:
    """Raise ValueError, naming the setting, where a text contains what looks like a credential."""
    for name, value in settings.items():
        if isinstance(value, str) and SECRETS.search(value):
            raise ValueError(
                f"{name}: holds what looks like a credential, and settings are written into records and reports; give "
                "it by the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, ...) or the machine's role instead"
            )
