"""What a refusal has to look like."""

import re


def is_one_sentence(message: str) -> bool:
    """Whether a message is one line, one sentence, and short."""
    return "\n" not in message and re.search(r"[.!?]\s+[A-Z]", message) is None and len(message) < 400
