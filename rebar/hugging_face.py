"""The Hugging Face hub, as its users set it, and what its client's errors mean."""

import os
from typing import Any


def hub_url() -> str:
    """``$HF_ENDPOINT``, else the hub itself; without a slash at its end."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def http_status(error: Any) -> int | None:
    """The HTTP status of an error or of what caused it; None where it has none."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None
