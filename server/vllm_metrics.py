"""The metrics once more under the names and labels that vLLM gives them.

Made from the same scrape, so that both always agree; what has no counterpart among the metrics is
in ``vllm_counts``. What vLLM has and this server does not is left out: a panel without data says
more than one with zeros.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

ENGINE = "0"  # vLLM counts the engines behind one endpoint; here it is one


class Name(NamedTuple):
    """A family's name there; ``labels`` are those kept beside the model, by their name here."""

    there: str
    labels: tuple[tuple[str, str], ...] = ()


REASON = (("finish_reason", "finished_reason"),)
NAMES: dict[str, tuple[Name, ...]] = {
    "requests_running": (Name("num_requests_running"),),
    "requests_waiting": (Name("num_requests_waiting"),),
    # Each under the present name, and under the one that older dashboards and routers read.
    "kv_cache_usage_ratio": (Name("kv_cache_usage_perc"), Name("gpu_cache_usage_perc")),
    "prefix_cache_queries": (Name("prefix_cache_queries"), Name("gpu_prefix_cache_queries")),
    "prefix_cache_hits": (
        Name("prefix_cache_hits"),
        Name("gpu_prefix_cache_hits"),
        Name("prompt_tokens_cached"),
    ),
    "inter_token_latency_seconds": (
        Name("inter_token_latency_seconds"),
        Name("time_per_output_token_seconds"),
    ),
    "prompt_tokens": (Name("prompt_tokens"),),
    "generation_tokens": (Name("generation_tokens"),),
    "requests": (Name("request_success", REASON),),
    "preemptions": (Name("num_preemptions"),),
    "admission_rejections": (Name("admission_rejections", (("reason", "reason"),)),),
    "client_disconnects": (Name("http_requests_client_disconnected"),),
    "draft_tokens": (Name("spec_decode_num_draft_tokens"),),
    "draft_accepted_tokens": (Name("spec_decode_num_accepted_tokens"),),
    "time_to_first_token_seconds": (Name("time_to_first_token_seconds"),),
    "e2e_request_latency_seconds": (Name("e2e_request_latency_seconds"),),
    "request_queue_time_seconds": (Name("request_queue_time_seconds"),),
    "request_prefill_time_seconds": (Name("request_prefill_time_seconds"),),
}
BUCKET = (("le", "le"),)
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


class VllmNames(Collector):
    """Everything that ``registry`` collects, and the same under vLLM's names."""

    def __init__(self, registry: Collector) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Both, of one moment."""
        for family in self._registry.collect():
            yield family
            for name in NAMES.get(family.name.removeprefix("commons_"), ()):
                yield _renamed(family, name)


def _renamed(family: Metric, name: Name) -> Metric:
    """A family under vLLM's name: there a model's adapters and drafts are one."""
    there = Metric(f"vllm:{name.there}", family.documentation, family.type)
    for suffix in SUFFIXES[family.type]:
        labels = name.labels + (BUCKET if suffix == "_bucket" else ())
        kept = (s for s in family.samples if s.name == family.name + suffix)
        there.samples += _summed(kept, there.name + suffix, labels)
    return there


def _summed(
    samples: Iterable[Sample], name: str, labels: tuple[tuple[str, str], ...]
) -> list[Sample]:
    sums: dict[tuple[str, ...], float] = defaultdict(float)  # in the order they came in
    for sample in samples:
        key = (sample.labels["model"], *(sample.labels[here] for here, _ in labels))
        sums[key] += sample.value
    names = [theirs for _, theirs in labels]
    return [
        Sample(
            name,
            {"model_name": model, "engine": ENGINE, **dict(zip(names, rest, strict=True))},
            value,
        )
        for (model, *rest), value in sums.items()
    ]
