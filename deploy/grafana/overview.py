"""The first page: is it well, how much does it do, how long does anybody wait."""

from __future__ import annotations

from collections.abc import Sequence

from .panels import Json, Line, Panel, Query, dashboard, variable

OF = 'instance=~"$instance",model=~"$model"'
EVERY = "$__rate_interval"
VARIABLES = (
    variable("instance", "label_values(commons_engine_healthy, instance)"),
    variable("model", 'label_values(commons_engine_healthy{instance=~"$instance"}, model)'),
)
PARTS = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
GOOD_AT_1 = ((None, "red"), (1, "green"))
BAD_WHEN_FULL = ((None, "green"), (0.85, "orange"), (0.95, "red"))


def rate(metric: str, more: str = "", by: str = "") -> str:
    """The rate of a counter's sum; ``more`` selects, ``by`` groups."""
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate(commons_{metric}{{{OF}{more}}}[{EVERY}]))"


def percentiles(metric: str, parts: Sequence[tuple[float, str]] = PARTS) -> list[Query]:
    """Those of a histogram over all models that are shown."""
    buckets = rate(f"{metric}_bucket", by="le")
    return [Query(f"histogram_quantile({part}, {buckets})", name) for part, name in parts]


def hit_ratio(by: str = "") -> str:
    """The part of looked-up prompt tokens that the cache had."""
    hits, queries = (
        rate("prefix_cache_hits_total", by=by),
        rate("prefix_cache_queries_total", by=by),
    )
    return f"{hits} / {queries}"


HIT_RATIO = Panel(
    "Hit ratio by namespace",
    "Prompt tokens found in the cache, of those looked up, by model, adapter and draft.",
    [Query(hit_ratio("model, adapter, draft"), "{{model}} {{adapter}} {{draft}}")],
    "percentunit",
    most=1,
)
KV_STATES = Panel(
    "KV memory by state",
    "Lent: attended in place by running requests. Owned: by one row alone. Cached: for the next "
    "one, and given up when room is needed.",
    [Query(f"sum by (state) (commons_kv_cache_bytes{{{OF}}})", "{{state}}")],
    "bytes",
    stacked=True,
)

STATE = Line(
    4,
    [
        Panel(
            "Engine",
            "1 while every engine thread works.",
            [Query(f"min(commons_engine_healthy{{{OF}}})")],
            kind="stat",
            steps=GOOD_AT_1,
        ),
        Panel(
            "Running",
            "Requests with a row in the engine.",
            [Query(f"sum(commons_requests_running{{{OF}}})")],
            kind="stat",
        ),
        Panel(
            "Waiting",
            "Requests in the queue.",
            [Query(f"sum(commons_requests_waiting{{{OF}}})")],
            kind="stat",
        ),
        Panel(
            "Generated",
            "Tokens a second of all replies together.",
            [Query(rate("generation_tokens_total"))],
            kind="stat",
        ),
        Panel(
            "Hit ratio",
            "Prompt tokens that did not have to be computed.",
            [Query(hit_ratio())],
            "percentunit",
            kind="stat",
        ),
        Panel(
            "KV in use",
            "KV memory that running requests hold; what is only cached can be given up.",
            [
                Query(
                    f'sum(commons_kv_cache_bytes{{{OF},state=~"lent|owned"}})'
                    f" / sum(commons_kv_cache_bytes{{{OF}}})"
                )
            ],
            "percentunit",
            kind="stat",
            steps=BAD_WHEN_FULL,
        ),
    ],
)
THROUGHPUT = Line(
    8,
    [
        Panel(
            "Tokens",
            "Prompt tokens that were computed, those the cache had, and generated ones.",
            [
                Query(rate("prompt_computed_tokens_total"), "prompt, computed"),
                Query(rate("prefix_cache_hits_total"), "prompt, cached"),
                Query(rate("generation_tokens_total"), "generated"),
            ],
        ),
        Panel(
            "Requests",
            "Requests that ended, by how.",
            [Query(rate("requests_total", by="finish_reason"), "{{finish_reason}}")],
            "reqps",
            stacked=True,
        ),
    ],
)
LATENCY = Line(
    8,
    [
        Panel(
            "Time to first token",
            "From acceptance, so waiting counts.",
            percentiles("time_to_first_token_seconds"),
            "s",
        ),
        Panel(
            "Inter-token latency",
            "Gaps between two tokens of a reply.",
            percentiles("inter_token_latency_seconds"),
            "s",
        ),
        Panel(
            "Whole request",
            "From acceptance to end.",
            percentiles("e2e_request_latency_seconds"),
            "s",
        ),
    ],
)
QUEUE = Line(
    8,
    [
        HIT_RATIO,
        Panel(
            "Queue",
            "Requests with a row, and those that wait for one.",
            [
                Query(f"sum(commons_requests_running{{{OF}}})", "running"),
                Query(f"sum(commons_requests_waiting{{{OF}}})", "waiting"),
            ],
        ),
        Panel(
            "Where the first token's time goes",
            "90th percentiles: waiting for a row, and the prompt's computation after that.",
            [
                *percentiles("request_queue_time_seconds", [(0.9, "queue")]),
                *percentiles("request_prefill_time_seconds", [(0.9, "prefill")]),
            ],
            "s",
        ),
    ],
)
MEMORY = Line(
    8,
    [
        KV_STATES,
        Panel(
            "Memory",
            "What MLX holds in all, weights of it, and the process's resident memory.",
            [
                Query(f"sum by (kind) (commons_memory_bytes{{{OF}}})", "{{kind}}"),
                Query(
                    'process_resident_memory_bytes{job="commons",instance=~"$instance"}', "resident"
                ),
            ],
            "bytes",
        ),
        Panel(
            "Refused and interrupted",
            "Requests refused, rows put back into the queue, clients that went away.",
            [
                Query(rate("admission_rejections_total", by="reason") + " > 0", "{{reason}}"),
                Query(rate("preemptions_total"), "preempted"),
                Query(rate("client_disconnects_total"), "client gone"),
            ],
            "reqps",
        ),
    ],
)
STEPS = Line(
    8,
    [
        Panel(
            "Forward passes",
            "90th percentile of the time that a pass takes.",
            [
                Query(
                    f"histogram_quantile(0.9, {rate('step_seconds_bucket', by='phase, le')})",
                    "{{phase}}",
                )
            ],
            "s",
        ),
        Panel(
            "Rows in a decode step",
            "Mean: how many requests share one reading of the weights.",
            [Query(f"{rate('batch_rows_sum')} / {rate('batch_rows_count')}", "rows")],
        ),
        Panel(
            "Draft tokens",
            "Proposed, and those that were right. Nothing is proposed where it would not pay.",
            [
                Query(rate("draft_tokens_total", by="model, draft"), "{{model}} {{draft}} made"),
                Query(
                    rate("draft_accepted_tokens_total", by="model, draft"),
                    "{{model}} {{draft}} right",
                ),
            ],
        ),
    ],
)


def overview() -> Json:
    """The page."""
    return dashboard(
        "commons-overview",
        "Commons: overview",
        "Throughput, latency, queue and memory of mlx-commons servers.",
        VARIABLES,
        [STATE, THROUGHPUT, LATENCY, QUEUE, MEMORY, STEPS],
    )
