"""What is said to nobody: passwords and tokens, in links and beside them. Standard library only."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET = re.compile(
    r"(?i)([?&][^=&\s]*(?:token|key|sig|secret|pass|auth|cred)[^=&\s]*=|\b(?:token|password|secret|api_key)[=:]\s*)"
    r"[^&\s;,)'\"]*[^&\s;,)'\":]"
)
_BEARER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}|\b(hf_|gh[pousr]_|sk-)\w{8,}")


def masked(text: str) -> str:
    """The text without them."""
    text = _SECRET.sub(r"\1***", _USER.sub("***@", text))
    return _BEARER.sub(lambda match: f"{match[1] or match[2]}***", text)
