"""Public prompts with real models: lent to every domain, there once, and right."""

from __future__ import annotations

import gc
import random
from array import array

import pytest

from cache.loan import PUBLIC, Borrower
from engine.engine import Engine
from engine.params import SamplingParams
from engine.pieces import finish
from engine.public import PublicError, publishing
from engine.variant import BASE, Variant
from scheduler.events import Finished, Token
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.tenant import Tenant
from tests.adapters import make_adapter
from tests.drafts import NAME, always_worth_it, blurred
from tests.engine.memory import active_bytes
from tests.models import load_model, loaded, model_dir
from tests.oracle import Oracle, compare
from tests.tenants import check_forest

ANN, EVE = Borrower("ann", "one"), Borrower("eve", "two")
CUTS = (1.0, 0.5, 0.3, 1.0)  # of the public prompt, with which requests begin

pytestmark = pytest.mark.usefixtures("exact_count")


def words(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 500) for _ in range(count)]


class Run:
    """Requests of several tenants on one engine, one wave after the other."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.scheduler = Scheduler(engine)
        self.count = 0

    def ask(self, prompts, variant: Variant = BASE) -> list[tuple[list[int], int]]:
        """The reply and the number of cached tokens for each of (borrower, prompt), in order."""
        tokens: dict[str, list[int]] = {}
        cached: dict[str, int] = {}
        for borrower, prompt in prompts:
            name = str(self.count)
            self.count += 1
            tokens[name] = []
            self.scheduler.add(
                Request(
                    name,
                    tuple(prompt),
                    6,
                    SamplingParams(temperature=0.0),
                    variant=variant,
                    tenant=Tenant(borrower.tenant),
                    domain=borrower.domain,
                )
            )
        while self.scheduler.has_work:
            for event in self.scheduler.step():
                if isinstance(event, Token):
                    tokens[event.request_id].append(event.token)
                elif isinstance(event, Finished):
                    cached[event.request_id] = event.cached_tokens
            check_forest(self.engine.forest)
        return [(tokens[name], cached[name]) for name in tokens]


def attention(family: str) -> str:
    return "copied" if family == "deepseek_v3" else "lent"


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "qwen3_next", "deepseek_v3"])
def test_replies_on_a_public_prompt_are_those_of_a_cold_run(family):
    engine = Engine(loaded(family), kv_memory=1 << 34, attention=attention(family))
    prompt = words(1, 300)
    finish(publishing(engine, prompt, [150]))
    assert engine.input_tokens == 300
    run, oracle = Run(engine), Oracle(model_dir(family))
    for wave in range(2):
        prompts = [
            (borrower, prompt[: int(cut * 300)] + words(10 * i + wave, 20 + i))
            for i, cut in enumerate(CUTS)
            for borrower in (ANN, EVE)
        ]
        replies = run.ask(prompts)
        for (_, asked), (tokens, cached) in zip(prompts, replies, strict=True):
            shared = next((i for i, t in enumerate(asked) if i == 300 or t != prompt[i]), 300)
            # States that cannot be cut were kept at 150 and at the end.
            least = shared if not engine.stateful else 150 * (shared // 150)
            assert cached >= least
            assert compare(tokens, oracle.cold(asked, 6)).kind != "different"
    assert engine.forest.ledger.shares.charged()[PUBLIC] > 0


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "qwen3_next"])
def test_its_memory_is_there_once_and_accounted(family):
    model = loaded(family)
    warm = Engine(model, kv_memory=1 << 34)
    Run(warm).ask([(ANN, words(9, 50))])  # what the model itself computes once and keeps
    warm.close()
    del warm
    gc.collect()
    base = active_bytes()
    engine = Engine(model, kv_memory=1 << 34)
    prompt = words(1, 2000)
    finish(publishing(engine, prompt))
    public = engine.used
    assert public >= 2000 * engine.token_bytes
    assert abs(active_bytes() - base - public) <= 0.02 * public
    run = Run(engine)
    for number in range(6):
        borrower = Borrower(f"t{number}", f"domain {number}")
        ((_, cached),) = run.ask([(borrower, [*prompt, *words(number, 30)])])
        assert cached == 2000
    # Half of the prompt and something else: a cut that copies nothing.
    run.ask([(ANN, [*prompt[:1000], *words(7, 30)])])
    states = sum(cache.tree.snapshot_nbytes for cache in engine.forest)
    assert engine.used - states < 1.2 * public
    assert abs(active_bytes() - base - engine.used) <= 0.02 * engine.used
    charged = engine.forest.ledger.shares.charged()
    assert charged[PUBLIC] == public
    assert charged["t0"] == charged["t5"] <= (engine.used - public) / 6
    while engine.forest.evict() >= 0:
        pass
    assert engine.used == public
    assert len(engine.forest) == 1
    engine.close()
    del engine, run
    gc.collect()
    assert active_bytes() - base < 1 << 14


def test_a_loan_of_a_public_prompt_names_it_and_costs_nobody():
    engine = Engine(loaded("qwen3"), kv_memory=1 << 34)
    finish(publishing(engine, words(1, 100)))
    seen = []
    admit = engine.admit

    def record(*args):
        seen.append(admit(*args))
        return seen[-1]

    engine.admit = record
    Run(engine).ask([(ANN, [*words(1, 100), 7, 8])])
    assert seen[0].loan == ({PUBLIC: 100}, ())


def test_with_a_draft_model_it_is_published_with_the_drafts_kv():
    engine = Engine(loaded("qwen3"), kv_memory=1 << 34, draft=blurred("qwen3", 0.1))
    always_worth_it(engine)
    drafted = Variant(draft=NAME)
    prompt = words(1, 200)
    finish(publishing(engine, prompt, variant=drafted))
    assert engine.used > 200 * engine.token_bytes * 1.5
    run, oracle = Run(engine), Oracle(model_dir("qwen3"))
    asked = [*prompt, *words(2, 20)]
    ((tokens, cached),) = run.ask([(ANN, asked)], drafted)
    assert cached == 200
    assert compare(tokens, oracle.cold(asked, 6)).kind != "different"
    ((_, cached),) = run.ask([(ANN, asked)])
    assert cached == 0, "without the draft it is another namespace"


def test_a_forgotten_adapter_leaves_nothing_in_any_domain(tmp_path):
    path = model_dir("qwen3")
    engine = Engine(load_model(path), kv_memory=1 << 34, draft=blurred("qwen3", 0.1))
    always_worth_it(engine)
    for number, name in enumerate("ab"):
        folder = make_adapter(path, tmp_path / name, seed=number, rank=4)
        engine.adapters.register(name, folder)
    prompt = words(1, 100)
    finish(publishing(engine, prompt, variant=Variant("a")))
    run = Run(engine)
    for variant in (Variant("a"), Variant("a", NAME), Variant("b")):
        for borrower in (ANN, EVE):
            ((_, cached),) = run.ask([(borrower, [*prompt, 5, 6])], variant)
            assert cached == (100 if variant == Variant("a") else 0)
    engine.adapters.unregister("a")
    assert len(engine.forest) == 2
    assert engine.lookup(array("i", [*prompt, 5]), Variant("b"), EVE).length == 100
    engine.adapters.unregister("b")
    assert engine.used == 0


def test_what_does_not_fit_is_refused_and_leaves_nothing_behind():
    engine = Engine(loaded("qwen3"), kv_memory=0)
    engine.budget.limit = 600 * engine.token_bytes
    with pytest.raises(PublicError, match="1000 tokens needs more KV memory"):
        finish(publishing(engine, words(1, 1000)))
    # The row fits, the copy that would stay does not fit beside it.
    with pytest.raises(PublicError, match="400 tokens needs more KV memory"):
        finish(publishing(engine, words(1, 400)))
    assert engine.used == 0
    finish(publishing(engine, words(1, 60)))
    assert engine.used == 60 * engine.token_bytes


def test_it_comes_before_the_first_request():
    engine = Engine(loaded("qwen3"), kv_memory=1 << 34)
    Run(engine).ask([(ANN, words(1, 20))])
    with pytest.raises(AssertionError, match="in use already"):
        finish(publishing(engine, words(1, 100)))


def test_it_is_computed_in_passes_between_which_others_go_on():
    engine = Engine(loaded("qwen3"), kv_memory=1 << 34)
    assert len(list(publishing(engine, words(1, 2000)))) > 1
