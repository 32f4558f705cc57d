"""The page of the cache: who lends to whom, what that takes and saves, what is given up."""

from __future__ import annotations

from typing import Any

from .overview import EVERY, HIT_RATIO, KV_STATES, OF, VARIABLES, rate
from .panels import Json, Line, Panel, Query, dashboard

LENT = 'commons_prefix_cache_lent_tokens_total{instance=~"$instance"}'
HEAT: dict[str, Any] = {"mode": "continuous-BlPu"}


def _lent(by: str) -> str:
    return f"sum by ({by}) (rate({LENT}[{EVERY}]))"


MATRIX = Panel(
    "Who lends to whom",
    "Tokens that requests of a borrower (columns) found in the cache and a lender (rows) had "
    "computed, in the time range.",
    [Query(f"sum by (lender, borrower) (increase({LENT}[$__range]))")],
    kind="table",
    instant=True,
    more={
        "transformations": [
            {
                "id": "groupingToMatrix",
                "options": {
                    "columnField": "borrower",
                    "rowField": "lender",
                    "valueField": "Value",
                },
            }
        ],
        "fieldConfig": {
            "defaults": {
                "unit": "short",
                "decimals": 0,
                "min": 0,
                "color": HEAT,
                "custom": {"cellOptions": {"type": "color-background", "mode": "basic"}},
            },
            "overrides": [
                {
                    "matcher": {"id": "byName", "options": "lender\\borrower"},
                    "properties": [{"id": "custom.cellOptions", "value": {"type": "auto"}}],
                }
            ],
        },
    },
)
OVER_TIME = Panel(
    "Who lends to whom, over time",
    "Tokens a second by lender and borrower.",
    [Query(_lent("lender, borrower"), "{{lender}} to {{borrower}}")],
    kind="heatmap",
    more={
        "options": {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 64},
            "yAxis": {"axisPlacement": "left"},
            "legend": {"show": True},
            "tooltip": {"mode": "single", "yHistogram": False},
        }
    },
)
FLOW = Line(
    8,
    [
        Panel(
            "Lent by",
            "Tokens a second that others, or the tenant itself, found in the cache.",
            [Query(_lent("lender"), "{{lender}}")],
            stacked=True,
        ),
        Panel(
            "Borrowed by",
            "Tokens a second found in the cache.",
            [Query(_lent("borrower"), "{{borrower}}")],
            stacked=True,
        ),
        HIT_RATIO,
    ],
)
BYTES = Line(
    8,
    [
        KV_STATES,
        Panel(
            "Lent and cached",
            "Bytes that running requests attend to in place, and that wait for the next one.",
            [
                Query(f'sum(commons_kv_cache_bytes{{{OF},state="{state}"}})', state)
                for state in ("lent", "cached")
            ],
            "bytes",
        ),
        Panel(
            "Evictions",
            "Tokens a second that left the cache to make room. Beside a low hit ratio: too little "
            "memory for what is asked.",
            [Query(rate("prefix_cache_evicted_tokens_total", by="model"), "{{model}}")],
        ),
    ],
)
PROMPTS = Line(
    8,
    [
        Panel(
            "Prompt tokens",
            "What went through the model and what was lent instead.",
            [
                Query(rate("prompt_computed_tokens_total"), "computed"),
                Query(rate("prefix_cache_hits_total"), "lent"),
            ],
            stacked=True,
        ),
        Panel(
            "KV used",
            "Everything but what is free. A cache that works is full.",
            [
                Query(
                    f"commons_kv_cache_usage_ratio{{{OF}}}",
                    "{{instance}} {{model}}",
                )
            ],
            "percentunit",
            most=1,
        ),
        Panel(
            "Prompts made alike",
            "Prompts from which noise that differs by request was taken.",
            [Query(rate("prompt_normalised_total", by="kind"), "{{kind}}")],
            "reqps",
        ),
    ],
)


def cache() -> Json:
    """The page."""
    return dashboard(
        "commons-cache",
        "Commons: cache",
        "What the prefix cache holds, lends and gives up.",
        VARIABLES,
        [Line(10, [MATRIX, OVER_TIME]), FLOW, BYTES, PROMPTS],
    )
