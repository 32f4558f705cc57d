"""What ``commons bench`` can be told."""

from __future__ import annotations

from dataclasses import dataclass

from .bench_scenario import Closed, Group, Scenario, scenario_names
from .options import Options, option


@dataclass(frozen=True, slots=True)
class TargetOptions(Options):
    """What the load is put on."""

    panel = "Endpoint"

    base: str = option("http://127.0.0.1:8000/v1", "Where the API is.")
    model: str = option("default", "Model id; 'default' is the first one that the server lists.")
    key: str = option("", "API key, where the server wants one.")
    tenant_key: list[str] | None = option(
        None, "The key of a scenario's tenant; repeatable.", metavar="TENANT=KEY"
    )
    metrics_key: str = option("", "The key for /metrics, where the server wants one.")
    timeout: float = option(900.0, "Seconds for one request.", min=0.1)


@dataclass(frozen=True, slots=True)
class LoadOptions(Options):
    """Which load it is."""

    panel = "Load"

    scenario: str = option(
        "", f"A load as data: {', '.join(scenario_names())}.", metavar="NAME|FILE.toml"
    )
    duration: float | None = option(None, "Seconds after which no turn begins.", min=0.1)
    seed: int | None = option(None, "Another seed makes other text and other arrivals.")


@dataclass(frozen=True, slots=True)
class AgentOptions(Options):
    """Agents with one system prompt, or one each, and growing conversations."""

    panel = "Load without a scenario"

    agents: int = option(16, "Conversations held at once.", min=1)
    turns: int = option(3, "Questions per conversation.", min=1)
    system_tokens: int = option(4000, "Length of the system prompt, roughly.", min=1)
    user_tokens: int = option(150, "Length of a question, roughly.", min=1)
    max_tokens: int = option(48, "Length of a reply at most.", min=1)
    private: bool = option(False, "A system prompt of its own for each agent.")
    stagger: float = option(0.0, "Seconds between the starts of two agents.", min=0)

    def as_scenario(self) -> Scenario:
        """The load."""
        group = Group(
            name="agent",
            arrivals=Closed(self.agents, self.stagger),
            turns=self.turns,
            system_tokens=self.system_tokens,
            system_prompts=0 if self.private else 1,
            user_tokens=self.user_tokens,
            max_tokens=self.max_tokens,
        )
        about = f"{self.agents} agents with growing conversations."
        return Scenario(clients=(group,), about=about)


@dataclass(frozen=True, slots=True)
class ReportOptions(Options):
    """Where the numbers go."""

    panel = "Report"

    json: str = option("", "Write all numbers; - for stdout.", metavar="FILE")
    html: str = option("", "Write one page with plots.", metavar="FILE")
