"""Whether the Hub answers, and as whom: its `whoami-v2`, which also says 401 to nobody.

huggingface_hub is imported only when it is needed; no token reaches a message.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus

from steph.run.hub_failure import HubFailure, classify


@dataclass(frozen=True)
class Login:
    """What the Hub said; `failure` where it was not reached, `is_refused` where it does not know the token."""

    endpoint: str
    has_token: bool
    is_refused: bool = False
    user: str | None = None
    failure: HubFailure | None = None


def login(timeout_seconds: float) -> Login:
    """Ask the Hub of the environment (HF_ENDPOINT) who its token (HF_TOKEN, `hf auth login`) belongs to."""
    from huggingface_hub import constants, get_session, get_token

    endpoint = constants.ENDPOINT.rstrip("/")
    token = get_token()
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        answer = get_session().get(f"{endpoint}/api/whoami-v2", headers=headers, timeout=timeout_seconds)
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            answer.raise_for_status()
    except Exception as error:
        failure = classify(error, name="whoami", endpoint=endpoint, timeout_seconds=timeout_seconds)
        return Login(endpoint, token is not None, failure=failure)
    if token is None:
        return Login(endpoint, has_token=False)
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        return Login(endpoint, has_token=True, is_refused=True)
    return Login(endpoint, has_token=True, user=_name(answer.text))


def _name(text: str) -> str | None:
    """The account's name; None where the answer is not the Hub's (a mirror need not know the question)."""

    try:
        return str(json.loads(text)["name"])
    except (ValueError, KeyError, TypeError):
        return None
