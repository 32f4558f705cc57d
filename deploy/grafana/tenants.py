"""The page of the tenants: what each gets, how near its limits it is, and whether that is fair."""

from __future__ import annotations

from .overview import EVERY, VARIABLES
from .panels import Json, Line, Panel, Query, dashboard, variable

OF = 'instance=~"$instance",tenant=~"$tenant"'
INSTANCE = VARIABLES[0]
NEAR_LIMIT = ((None, "green"), (0.8, "orange"), (1, "red"))


def _rate(metric: str) -> str:
    return f"sum by (tenant) (rate(commons_tenant_{metric}_total{{{OF}}}[{EVERY}]))"


def _of(metric: str) -> str:
    return f"sum by (tenant) (commons_tenant_{metric}{{{OF}}})"


SERVICE = _rate("engine_seconds")
WEIGHTED = f"({SERVICE} / max by (tenant) (commons_tenant_weight{{{OF}}}))"
BUSY = f"({WEIGHTED} > 0)"

SERVED = Line(
    8,
    [
        Panel(
            "Service",
            "Engine seconds a second, by each request's part of the passes it was in.",
            [Query(SERVICE, "{{tenant}}")],
            "percentunit",
            stacked=True,
        ),
        Panel(
            "Service by weight",
            "Engine seconds over weight. Equal for those who always have requests waiting.",
            [Query(WEIGHTED, "{{tenant}}")],
        ),
        Panel(
            "Fairness",
            "Jain's index of the service by weight of all who got any: 1 where all are equal, one "
            "over their number where one has everything. Low is no fault while nobody waits.",
            [Query(f"sum({BUSY}) ^ 2 / (count({BUSY}) * sum({BUSY} ^ 2))", "index")],
            "percentunit",
            most=1,
        ),
    ],
)
TOKENS = Line(
    8,
    [
        Panel(
            "Tokens generated",
            "By second.",
            [Query(_rate("generation_tokens"), "{{tenant}}")],
            stacked=True,
        ),
        Panel(
            "Prompt tokens",
            "By second, cached or not.",
            [Query(_rate("prompt_tokens"), "{{tenant}}")],
            stacked=True,
        ),
        Panel(
            "Hit ratio",
            "Prompt tokens that the cache had.",
            [Query(f"{_rate('cached_tokens')} / {_rate('prompt_tokens')}", "{{tenant}}")],
            "percentunit",
            most=1,
        ),
    ],
)
QUEUE = Line(
    8,
    [
        Panel(
            "Requests",
            "That ended, by second.",
            [Query(_rate("requests"), "{{tenant}}")],
            "reqps",
            stacked=True,
        ),
        Panel(
            "Running and waiting",
            "Accepted requests.",
            [
                Query(_of("requests_running"), "{{tenant}} running"),
                Query(_of("requests_waiting"), "{{tenant}} waiting"),
            ],
        ),
        Panel(
            "Mean wait",
            "From acceptance to a row.",
            [Query(f"{_rate('queue_seconds')} / {_rate('requests')}", "{{tenant}}")],
            "s",
        ),
    ],
)
LIMITS = Line(
    9,
    [
        Panel(
            "Limits used",
            "The used part of each limit; 0 where there is none.",
            [
                Query(
                    f"max by (tenant, limit) (commons_tenant_limit_used_ratio{{{OF}}})",
                    "{{tenant}} {{limit}}",
                )
            ],
            "percentunit",
            kind="bargauge",
            instant=True,
            most=1,
            steps=NEAR_LIMIT,
        ),
        Panel(
            "Refused for a limit",
            "By second.",
            [
                Query(
                    "sum by (tenant, limit) "
                    f"(rate(commons_tenant_limit_refusals_total{{{OF}}}[{EVERY}]))",
                    "{{tenant}} {{limit}}",
                )
            ],
            "reqps",
        ),
    ],
)


def tenants() -> Json:
    """The page."""
    return dashboard(
        "commons-tenants",
        "Commons: tenants",
        "What tenants get, and how near their limits they are.",
        [
            INSTANCE,
            variable(
                "tenant", 'label_values(commons_tenant_weight{instance=~"$instance"}, tenant)'
            ),
        ],
        [SERVED, TOKENS, QUEUE, LIMITS],
    )
