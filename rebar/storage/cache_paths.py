"""Where this user's files lie that can be made again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/rebar``, else ``~/.cache/rebar``; it need not exist.

    https://specifications.freedesktop.org/basedir-spec/latest/
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "rebar"
