"""What drafts save in a batch: ``python -m deploy.loadtest.draft_rows [MODEL DRAFT]``.

The same prompts are answered without a draft, with the draft model and with prompt lookup, in
batches of 1, 4 and 16 rows. Prints tokens per second, their ratio to none, tokens per row and
step, and the share of proposals that was accepted; first for the model as its own draft.
Without arguments it is the embedded pair on chats of the kind that it was trained for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from engine import embedded
from engine.drafting import Curve
from engine.embedded import corpus
from engine.engine import Engine
from engine.options import NUM_DRAFT_TOKENS, EngineOptions
from engine.params import SamplingParams
from engine.rows import Row
from engine.sampling import RowSampling
from engine.speculation import Speculation
from engine.start import Started, start_engine
from engine.variant import NGRAM, Variant

BATCHES = (1, 4, 16)
ROUNDS, NEW = 5, 48
SEED = 4321
DRAFT = "draft"
FLAT, FREE = Curve((1, 64), (1.0, 1.0), 0.0), Curve((1, 64), (1e-9, 1e-9), 0.0)


@dataclass
class Tally:
    """What a batch took; the counts are of tokens, but for ``steps``, which are a row's."""

    seconds: float = 0.0
    generated: int = 0
    steps: int = 0
    proposed: int = 0
    accepted: int = 0


def start(model: str, draft: str) -> Started:
    """The engine as the server would start it."""
    options = EngineOptions(
        model, kv_memory=1 << 32, prefix_cache=False, draft_model=draft, draft_name=DRAFT
    )
    return start_engine(options, lambda _: None)


def prompts(started: Started) -> Iterator[array[int]]:
    """Chats that wait for an answer, as token ids."""
    for chat in corpus.conversations(SEED, 400):
        messages = chat.messages[:-1]
        if messages and messages[-1]["role"] in ("user", "tool"):
            ids = started.loaded.tokenizer.apply_chat_template(
                messages, tools=chat.tools, add_generation_prompt=True
            )
            yield array("i", ids)


def answer(
    started: Started, batch: Sequence[array[int]], variant: Variant, tally: Tally | None = None
) -> Tally:
    """Generates for every prompt until its end, or ``NEW`` tokens."""
    engine, tally = started.engine, tally or Tally()
    left = {_prefilled(engine, i, p, variant): NEW for i, p in enumerate(batch)}
    began = time.perf_counter()
    while running := [row for row, rest in left.items() if rest > 0]:
        assert all(engine.make_room(row) for row in running)
        engine.submit(running, [left[row] for row in running])
        for row, choices, proposed, _ in engine.collect():
            tally.steps += 1
            tally.proposed += proposed
            tally.accepted += len(choices) - 1
            for choice in choices:
                tally.generated += 1
                left[row] -= 1
                if choice.token in started.loaded.eos_token_ids:
                    left[row] = 0
                    break
    tally.seconds += time.perf_counter() - began
    for row in left:
        engine.release(row)
    return tally


def _prefilled(engine: Engine, number: int, prompt: array[int], variant: Variant) -> Row:
    sampling = RowSampling(SamplingParams(temperature=0.0), prompt, engine.vocab_size)
    row = engine.admit(str(number), prompt[:], sampling, (), variant)
    assert row is not None
    while row.remaining:
        engine.prefill(row, 512)
    return row


def compare(started: Started, rows: int) -> dict[str, float]:
    """Numbers of batches of ``rows``."""
    variants = {"none": Variant(), "draft": Variant(draft=DRAFT), "lookup": Variant(draft=NGRAM)}
    source = prompts(started)
    answer(started, list(islice(source, rows)), variants["draft"])  # warms up
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    tallies = {name: Tally() for name in variants}
    for _ in range(ROUNDS * max(1, 16 // rows)):
        batch = list(islice(source, rows))
        for name, variant in variants.items():  # by turns, since the machine's own speed drifts
            tally = tallies[name]
            before = tally.seconds, tally.generated
            answer(started, batch, variant, tally)
            speeds[name].append((tally.generated - before[1]) / (tally.seconds - before[0]))
    numbers = {}
    for name, tally in tallies.items():
        numbers[f"{name}_tok_s"] = tally.generated / tally.seconds
        numbers[f"{name}_tokens_per_step"] = tally.generated / tally.steps
        if name != "none":
            numbers[f"{name}_accepted"] = tally.accepted / max(1, tally.proposed)
            pairs = zip(speeds[name], speeds["none"], strict=True)
            numbers[f"{name}_by_none"] = statistics.median(a / b for a, b in pairs)
    return numbers


def itself(model: str) -> float:
    """The share of proposals accepted where the model is its own draft."""
    started = start(model, model)
    engine = started.engine
    # As if passes cost the same however many tokens they have, and proposals nothing.
    engine.decoding.speculation = Speculation(NUM_DRAFT_TOKENS, FLAT, engine.drafter, FREE)
    tally = Tally()
    for prompt in islice(prompts(started), 8):
        answer(started, [prompt], Variant(draft=DRAFT), tally)
    return tally.accepted / max(1, tally.proposed)


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description="time decode batches of rows with drafts")
    parser.add_argument("model", type=Path, nargs="?", default=embedded.path())
    parser.add_argument("draft", type=Path, nargs="?", default=embedded.draft_path())
    chosen = parser.parse_args()
    numbers: dict[str, object] = {"itself_accepted": round(itself(str(chosen.model)), 3)}
    started = start(str(chosen.model), str(chosen.draft))
    for rows in BATCHES:
        measured = compare(started, rows)
        numbers[f"rows_{rows}"] = {name: round(value, 3) for name, value in measured.items()}
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
