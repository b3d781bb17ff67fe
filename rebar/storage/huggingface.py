"""Uploads to model repositories of the Hugging Face Hub, with errors translated to one-line messages.

The token comes from ``HF_TOKEN`` or ``hf auth login``. Messages never contain it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rebar.errors import RebarError


def hub_url() -> str:
    """Return ``$HF_ENDPOINT``, or the URL of the Hub, without a trailing slash."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def http_status(error: Any) -> int | None:
    """Return the HTTP status of an exception or of its cause; None if it has none."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None


def has_token() -> bool:
    """Return whether ``HF_TOKEN`` is set or ``hf auth login`` has stored a token."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    stored = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return bool(os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")) or stored.is_file()


def steps_to_access(dataset: str) -> str:
    """Return the four steps to get access to a gated dataset, on one line each."""
    return (
        f"  1. Create an account: {hub_url()}/join\n"
        f"  2. Accept the terms of the dataset: {hub_url()}/datasets/{dataset}\n"
        f"  3. Create a token with read permission: {hub_url()}/settings/tokens\n"
        "  4. Set HF_TOKEN to the token, or run hf auth login"
    )


_TOKEN = re.compile(r"\bhf_\w+")


class HubError(RebarError):
    """An upload to the Hub, or its preparation, failed."""


def prepare_repository(name: str) -> None:
    """Create the model repository ``owner/name`` unless it exists, to detect missing permissions before training.

    Raises HubError ``hf-token-missing``, ``hf-request-refused`` or ``hf-unreachable``.
    """
    api = _api()
    with _translate_errors(name):
        api.create_repo(name, repo_type="model", exist_ok=True)


def check_token(name: str) -> None:
    """Check that the token is valid and has write permission, without creating anything. Raises HubError."""
    api = _api()
    with _translate_errors(name):
        token = api.whoami().get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise HubError(
            f"logging.hf_repo {name}: the token is read-only. Create a token with write permission on "
            f"{hub_url()}/settings/tokens.",
            code="hf-request-refused",
        )


def upload_files(name: str, files: Mapping[str, Path | bytes], message: str) -> str:
    """Commit files to the repository's main branch, in one commit; return the URL of its page. Raises HubError."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import disable_progress_bars

    api = _api()
    disable_progress_bars()
    with _translate_errors(name):
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
            "logging.hf_repo: huggingface_hub is not installed. Run: pip install 'ffcv-rebar[hf]'",
            code="hf-not-installed",
        ) from None
    token = huggingface_hub.get_token()
    if token is None:
        raise HubError(
            "logging.hf_repo: no Hugging Face token. Create a token with write permission on "
            f"{hub_url()}/settings/tokens, then set HF_TOKEN or run 'hf auth login'.",
            code="hf-token-missing",
        )
    return huggingface_hub.HfApi(endpoint=hub_url(), token=token)


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    """Translate the client's exceptions to HubError."""
    try:
        yield
    except (RebarError, KeyboardInterrupt):
        raise
    except Exception as error:  # the exceptions of its HTTP library are not documented
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason, tokens, status = _TOKEN.sub("***", lines[0]), f"{hub_url()}/settings/tokens", http_status(error)
        advice = {
            401: f"The token is not valid for {hub_url()}, or has expired. Create a new one on {tokens}.",
            403: f"The token has no write permission for {name}. Add it on {tokens}.",
            404: f"The repository does not exist, or the token has no access to it: {hub_url()}/{name}.",
        }.get(status or 0)
        if advice is not None:
            raise HubError(f"logging.hf_repo {name}: HTTP {status}. {advice}", code="hf-request-refused") from None
        fix = "Check the network and HF_ENDPOINT." if status is None else "Check the name of the repository."
        raise HubError(
            f"logging.hf_repo {name}: {reason.rstrip('. ')}. {fix}",
            code="hf-unreachable" if status is None else "hf-request-refused",
        ) from None
