"""Whether the Hub answers, and as whom: its `whoami-v2`, which also says 401 to nobody.

huggingface_hub is imported only when it is needed; no token reaches a message.
"""

from __future__ import annotations

from http import HTTPStatus

from steph.base.files import parse_json
from steph.doctor.facts import HubFacts
from steph.run.fetch import classify
from steph.run.hub import is_offline

HUB_SECONDS = 5.0  # for one question; an answer takes well under one


def read_hub() -> HubFacts:
    """Ask the Hub of the environment (HF_ENDPOINT) who its token (HF_TOKEN, `hf auth login`) belongs to."""
    from huggingface_hub import constants, get_session, get_token

    endpoint = constants.ENDPOINT.rstrip("/")
    if is_offline():
        return HubFacts(endpoint, is_offline=True)
    token = get_token()
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        answer = get_session().get(f"{endpoint}/api/whoami-v2", headers=headers, timeout=HUB_SECONDS)
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            answer.raise_for_status()
    except Exception as error:
        failure = classify(error, name="whoami", endpoint=endpoint, timeout_seconds=HUB_SECONDS)
        return HubFacts(endpoint, has_token=token is not None, error=str(failure.message))
    if token is None:
        return HubFacts(endpoint, has_token=False)
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        return HubFacts(endpoint, has_token=True, is_refused=True)
    return HubFacts(endpoint, has_token=True, user=_name(answer.text))


def _name(text: str) -> str | None:
    """The account's name; None where the answer is not the Hub's (a mirror need not know the question)."""
    try:
        return str(parse_json(text.encode())["name"])
    except (ValueError, KeyError, TypeError):
        return None
