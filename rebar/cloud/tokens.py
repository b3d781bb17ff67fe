"""Client tokens: a request sent twice, by a killed and repeated command, creates one thing."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from rebar.cloud.errors import CloudError
from rebar.cloud.tags import now

MOST_GENERATIONS = 20


def client_token(request: Mapping[str, Any], generation: int) -> str:
    """A token that depends on the request, on the day, and on how many earlier things of it are gone."""
    content = json.dumps(
        [request, now().strftime("%Y-%m-%d"), generation], sort_keys=True, default=str, separators=(",", ":")
    )
    return "rebar-" + hashlib.sha256(content.encode()).hexdigest()[:48]


def create_once(create: Callable[[str], str], is_gone: Callable[[str], bool], seed: Mapping[str, Any]) -> str:
    """Create a thing, or get the one that the same request created before; returns its id.

    AWS answers a known token with what that token created, even where it has been deleted since: then the next
    token is used. ``create`` takes the token; ``is_gone`` says whether an id means a deleted thing.
    """
    for generation in range(MOST_GENERATIONS):
        created = create(client_token(seed, generation))
        if not is_gone(created):
            return created
    raise CloudError(f"the same thing was created and deleted {MOST_GENERATIONS} times today; look in the AWS console")
