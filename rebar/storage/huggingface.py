"""The Hugging Face hub, as its users set it, and what its client's errors mean.

Files to a model repository of the Hugging Face hub, in one commit; what goes wrong in one message.

The token is the one of HF_TOKEN, or of ``hf auth login``; no message repeats it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rebar.errors import RebarError


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


_TOKEN = re.compile(r"\bhf_\w+")


class HubError(RebarError):
    """The hub does not take what it is to get."""


def prepare_repository(name: str) -> None:
    """Make the model repository ``owner/name`` unless it exists; so it is known early whether it may be written to.

    Raises HubError where there is no token, where it may not, or where the hub does not answer.
    """
    api = _api()
    with _explained(name):
        api.create_repo(name, repo_type="model", exist_ok=True)


def check_token(name: str) -> None:
    """Whether there is a token that the hub knows and that may write; nothing is made.

    Raises HubError where not, or where the hub does not answer.
    """
    api = _api()
    with _explained(name):
        token = api.whoami().get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise HubError(
            f"logging.hf_repo {name}: the token may only read: make one that may write on {hub_url()}/settings/tokens"
        )


def upload_files(name: str, files: Mapping[str, Path | bytes], message: str) -> str:
    """Put files into the repository's main branch, all of them or none; returns its page. Raises HubError."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import disable_progress_bars

    api = _api()
    disable_progress_bars()
    with _explained(name):
        operations = [
            CommitOperationAdd(
                path_in_repo=path, path_or_fileobj=content if isinstance(content, bytes) else str(content)
            )
            for path, content in files.items()
        ]
        api.create_commit(name, operations, commit_message=message)
    return f"{hub_url()}/{name}"


def _api() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(
            "logging.hf_repo takes huggingface_hub: pip install huggingface_hub (or: pip install 'ffcv-rebar[hf]')"
        ) from None
    token = huggingface_hub.get_token()
    if token is None:
        raise HubError(
            f"logging.hf_repo: there is no token: make one that may write on {hub_url()}/settings/tokens, and set "
            "HF_TOKEN=hf_... or run 'hf auth login'"
        )
    return huggingface_hub.HfApi(endpoint=hub_url(), token=token)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever the client raises into a HubError."""
    try:
        yield
    except (RebarError, KeyboardInterrupt):
        raise
    except Exception as error:  # its HTTP library's errors are not part of its interface
        reason = _TOKEN.sub("***", str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        tokens = f"{hub_url()}/settings/tokens"
        advice = {
            401: f"the token is not known to {hub_url()}, or has expired: make a new one on {tokens}",
            403: f"the token may not write there: give it the right to write to {name} on {tokens}",
            404: f"there is no such repository, or the token may not see it: {hub_url()}/{name}",
        }.get(http_status(error) or 0)
        if advice is None:
            raise HubError(f"logging.hf_repo {name}: {reason}") from None
        raise HubError(f"logging.hf_repo {name}: HTTP {http_status(error)}: {advice}") from None
