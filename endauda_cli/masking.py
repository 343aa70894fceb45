"""What is said to nobody: passwords and tokens, in links and beside them; and control characters, which a file that
a stranger made could steer the terminal with. Standard library only."""

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


_CONTROL = re.compile(
    # C0 but line feed and tab, DEL, C1, the marks that turn the direction of writing, lone surrogates
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with control characters shown, as ``\\x1b``, instead of sent."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
