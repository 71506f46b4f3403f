"""Notices of drains and preemptions: nodes that Ray has been told will soon be gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import ray

# The one thing that Ray has no public interface for; its own Serve asks in the same way.
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import RpcError

ANSWER_SECONDS = 5

_log = logging.getLogger(__name__)


class DrainNotices:
    """Asks the connected cluster which nodes drain."""

    def __init__(self) -> None:
        self._client = GcsClient(address=ray.get_runtime_context().gcs_address)
        self._deadlines: Mapping[str, int] = {}  # in milliseconds of Unix time; 0: none

    def __call__(self) -> Mapping[str, str]:
        """Why, by the id of each node that drains."""
        try:
            self._deadlines = self._client.get_draining_nodes(timeout=ANSWER_SECONDS)
        except RpcError as error:  # it may be back when it is asked next
            _log.warning("the cluster did not say which nodes drain: %s", error)
        return {node: _reason(deadline) for node, deadline in self._deadlines.items()}


def _reason(deadline_ms: int) -> str:
    if not deadline_ms:
        return "because its node drains"
    left = max(0.0, deadline_ms / 1000 - time.time())
    return f"because its node drains and will be gone in {left:.0f} s"
