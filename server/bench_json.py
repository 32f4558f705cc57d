"""The report of ``commons bench`` as one JSON object.

What was done:

- ``version``: 1, and another one once a key here changes its meaning or goes;
- ``base``, ``model``, ``began`` (local time, ISO 8601);
- ``scenario``: as in its file, with every default written out.

What came of it:

- ``wall_s``: seconds from the start to the end of the last request;
- ``interrupted``: whether Ctrl-C ended it early;
- ``requests``, ``errors``, ``error_messages`` and ``finish_reasons`` (each to its count),
  ``uncounted_replies`` (replies for which the server gave no usage), ``replies_without_cached``
  (those for which it did not say how much it reused, which counts as nothing);
- ``prompt_tokens``, ``cached_tokens``, ``completion_tokens``: sums of the server's usage;
- ``hit_rate``: cached by prompt tokens; ``output_tokens_per_s``: completion tokens by wall;
- ``ttft_s``, ``itl_s``, ``pause_s``, each ``{"p50", "p95", "max"}`` or nulls: seconds to the
  first text of a reply, from when the request was due; a reply's mean seconds per further token;
  between two arrivals of text;
- ``by_turn``: a list of ``turn``, ``replies`` and for these the token sums, ``hit_rate`` and
  ``ttft_s``;
- ``by_group``: for each ``group`` of the scenario's clients the same, with ``requests``,
  ``errors``, ``output_tokens_per_s`` and ``itl_s``;
- ``pause_histogram``: a list of ``from_s``, ``to_s``, ``count``;
- ``course``: the run in equal intervals: ``from_s``, ``to_s``; of what ended in it ``replies``,
  ``errors``, the token sums and ``hit_rate``; of what was due in it ``ttft_s``;
- ``memory``: a list of ``at_s`` and bytes of the server by what they are for, from its
  ``/metrics``; null where these have none.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from .bench_client import Endpoint
from .bench_results import Results
from .bench_scenario import Scenario
from .bench_watch import Look, memory

VERSION = 1


def report(
    endpoint: Endpoint, scenario: Scenario, began: datetime, results: Results, looks: list[Look]
) -> dict[str, Any]:
    """The report as described at the top of this file."""
    return {
        "version": VERSION,
        "base": endpoint.base,
        "model": endpoint.model,
        "began": began.isoformat(" ", "seconds"),
        "scenario": msgspec.json.decode(msgspec.json.encode(scenario)),
        **results.json(),
        "memory": memory(looks),
    }
