"""What tokens cost just now, in seconds of engine time. Owned by one scheduler."""

from __future__ import annotations

PAST = 0.9  # weight of what is known already
PROMPT_TOKEN, DECODE_TOKEN = 1e-3, 1e-2  # until the first has been measured


class Costs:
    """Running means of a computed prompt token and of a row's part in a decode step."""

    def __init__(self) -> None:
        self.prompt_token = PROMPT_TOKEN
        self.decode_token = DECODE_TOKEN
        self._prefilled = self._decoded = False

    def prefilled(self, tokens: int, seconds: float) -> None:
        """Learns from a chunk."""
        past = PAST if self._prefilled else 0.0
        self.prompt_token += (1 - past) * (seconds / tokens - self.prompt_token)
        self._prefilled = True

    def decoded(self, part: float) -> None:
        """Learns what each row's part in a step was."""
        past = PAST if self._decoded else 0.0
        self.decode_token += (1 - past) * (part - self.decode_token)
        self._decoded = True

    def of(self, prompt: int, reply: float) -> float:
        """What a request will take for so many tokens to compute and to generate."""
        return prompt * self.prompt_token + reply * self.decode_token
