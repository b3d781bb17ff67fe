"""ImageNet from Kaggle's competition, by the interface that Kaggle's own tool uses."""

import base64
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from rebar.cloud.downloading import SILENCE_SECONDS, Address
from rebar.cloud.errors import CloudError

COMPETITION = "imagenet-object-localization-challenge"
ARCHIVE = f"{COMPETITION}.zip"
ENDPOINT = "https://www.kaggle.com"
RULES = f"{ENDPOINT}/competitions/{COMPETITION}/rules"
REDIRECTS = (301, 302, 303, 307, 308)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nothing: the credentials are for Kaggle, not for the store it leads to."""

    def redirect_request(self, *_: Any) -> None:
        return None


def find_archive() -> Address:
    """Where the competition's zip lies now, by the credentials in the environment or in ``kaggle.json``.

    Raises CloudError where there are none, or where Kaggle refuses them.
    """
    endpoint = os.environ.get("KAGGLE_API_ENDPOINT", ENDPOINT).rstrip("/")
    parts = urllib.parse.urlsplit(endpoint)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost"):
        raise CloudError("KAGGLE_API_ENDPOINT must begin with https://: credentials are sent there")
    address = Address(
        f"{endpoint}/api/v1/competitions/data/download-all/{COMPETITION}", {"Authorization": _authorization()}
    )
    request = urllib.request.Request(address.url, headers=dict(address.headers))
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=SILENCE_SECONDS):
            return address  # it sends the file itself
    except urllib.error.HTTPError as error:
        error.close()
        location = error.headers.get("Location")
        if error.code in REDIRECTS and location:
            return Address(urllib.parse.urljoin(address.url, location))
        raise CloudError(_told(error.code)) from None
    except OSError as error:
        raise CloudError(f"{endpoint} cannot be reached: {getattr(error, 'reason', error)}") from None


def _authorization() -> str:
    if token := os.environ.get("KAGGLE_API_TOKEN"):
        return f"Bearer {token}"
    user, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    if not (user and key):
        user, key = _stored()
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


def _stored() -> tuple[str, str]:
    folders = [os.environ.get("KAGGLE_CONFIG_DIR", ""), "~/.kaggle", "~/.config/kaggle"]
    for folder in filter(None, folders):
        path = Path(folder).expanduser() / "kaggle.json"
        if path.is_file():
            try:
                content = json.loads(path.read_text())
                return str(content["username"]), str(content["key"])
            except (OSError, ValueError, KeyError, TypeError):
                raise CloudError(f"{path} is not as Kaggle gives it: take a new one ({ENDPOINT}/settings)") from None
    raise CloudError(
        "no credentials for Kaggle: make a token (https://www.kaggle.com/settings) and set KAGGLE_USERNAME and "
        f"KAGGLE_KEY, and accept the rules on {RULES}"
    )


def _told(status: int) -> str:
    if status == 401:
        return f"Kaggle does not accept the credentials: make a new token ({ENDPOINT}/settings)"
    if status == 403:
        return f"Kaggle refuses the data: accept the rules on {RULES}, and confirm the account's telephone number"
    return f"Kaggle answered {status} instead of the archive"
