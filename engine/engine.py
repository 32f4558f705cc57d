"""One loaded model with its prefix cache: admit rows, prefill them, run decode steps, release.

Synchronous; everything happens on the engine thread. Knows nothing of queues or clients.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache

from cache.block import join
from cache.forest import Forest
from cache.namespace import Namespace, weights_digest
from cache.prefix_cache import Hit, Keeping, Lease, PrefixCache
from cache.radix import Clock, RadixTree

from .adapter_store import AdapterStore
from .adapters import Adapters
from .attention import LentLayer, Plan, install
from .budget import Budget, Memory, RowBytes
from .kv_memory import KvMemory
from .loader import Loaded
from .plans import DecodePlan, PrefillPlan, rank
from .rows import Row, Tail
from .sampling import RowSampling, Sampled, commit, describe, sample
from .slabs import GRANULE, LayerShape, SlabPool, round_capacity
from .states import (
    Snapshot,
    StateBatch,
    arrays,
    compact,
    duplicate,
    most_bytes,
    nbytes,
    probe,
    take_snapshot,
)

Attention = Literal["lent", "copied"]
MOST_CHUNK = 1024  # tokens of one prefill pass; bounds the scores that attention holds at once
ADAPTER_SLOTS = 64  # adapters in memory at once
FORK = 32  # tokens; from here on it pays to learn where prompts of a stateful model fork


class Choice(NamedTuple):
    """The token sampled for one row, with log-probabilities where it asked for them."""

    row: Row
    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class InFlight(NamedTuple):
    """A decode step that has been submitted."""

    rows: list[Row]
    sampled: Sampled


class Engine:
    """Runs one model for many rows.

    ``kv_memory`` bounds the KV of rows and tree together, in bytes or shared with other models.
    ``attention`` "lent" reads blocks of the tree in place; "copied" gives each row mlx-lm's own
    caches, for models that compute attention in their own way. At most ``adapter_slots``
    adapters are in memory.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        kv_memory: int | KvMemory,
        prefix_cache: bool = True,
        attention: Attention = "lent",
        keeping: Keeping | None = None,
        adapter_slots: int = ADAPTER_SLOTS,
    ) -> None:
        self.model = loaded.model
        self.digest = weights_digest(loaded.path)
        self.vocab_size = loaded.vocab_size
        self.attention: Attention = attention
        install()
        template = probe(self.model)
        by_token = [i for i, c in enumerate(template) if type(c) is KVCache]
        self._lent = {
            layer: LentLayer(i) for i, layer in enumerate(by_token) if attention == "lent"
        }
        self._own = [i for i in range(len(template)) if i not in self._lent]
        self.stateful = len(by_token) < len(template)
        self._shapes = [LayerShape.of(template[i]) for i in by_token]
        self.token_bytes = sum(s.token_bytes for s in self._shapes)
        self.pool = SlabPool(self._shapes if attention == "lent" else (), self.reserve)
        self.keeping = keeping or Keeping()
        self._caching = prefix_cache
        memory = KvMemory.of(kv_memory)
        self.forest = Forest(self._make_cache, memory.clock)
        state_bytes = sum(
            most_bytes(template[i]) for i in self._own if type(template[i]) is not KVCache
        )
        row_bytes = RowBytes(state_bytes, self.token_bytes if attention == "copied" else 0)
        self.budget = Budget(memory, self.pool, self.forest, row_bytes, self._row_lengths)
        self._adapters = Adapters(self.model)
        self.adapters = AdapterStore(self._adapters, adapter_slots, self._forget_adapter)
        self.batchable = all(hasattr(template[i], "merge") for i in self._own)
        self.input_tokens = 0
        self._batch = StateBatch()
        self._rows: set[Row] = set()
        self._decoding: list[Row] = []
        self._inflight: InFlight | None = None

    # memory

    @property
    def used(self) -> int:
        """Bytes of KV and states held by rows and tree."""
        states = self._batch.nbytes + sum(nbytes(r.states) for r in self._rows)
        return self.pool.nbytes + self.forest.nbytes + states

    def reserve(self, size: int) -> bool:
        """Whether ``size`` more bytes fit, after evicting as much as that takes."""
        return self.budget.reserve(size)

    def fits(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens could ever be served within the budget."""
        return self.budget.fits(tokens)

    def memory(self) -> Memory:
        """Where the budget is."""
        return self.budget.memory(self.used)

    def close(self) -> None:
        """Gives all memory back, that of the weights included; rows that are left are lost."""
        self.budget.leave()
        vars(self).clear()  # parts refer back here; weights must not wait for a garbage collection

    # a row's life

    def namespace(self, adapter: str | None = None) -> Namespace:
        """The name of what may share KV: this model with ``adapter``."""
        return Namespace(self.digest, self.adapters.digest(adapter) if adapter else "")

    def cache(self, adapter: str | None = None) -> PrefixCache:
        """The prefix cache of the base, or of one of its adapters."""
        return self.forest.of(self.namespace(adapter))

    def lookup(self, tokens: array[int], adapter: str | None = None) -> Hit:
        """What the cache has for a prompt."""
        return self.cache(adapter).lookup(tokens)

    def admit(
        self,
        request_id: str,
        tokens: array[int],
        sampling: RowSampling,
        boundaries: Sequence[int] = (),
        adapter: str | None = None,
    ) -> Row | None:
        """Starts a row on the longest cached prefix of ``tokens``; ``None``: not now.

        Raises AdapterError where the files of ``adapter`` cannot be read any more.
        """
        if adapter is not None and not self.adapters.acquire(adapter):
            return None
        hit = self.lookup(tokens, adapter)
        tries = [hit]
        if hit.whole < hit.length:
            # No memory to cut the last block: do with those that match as they are.
            tries.append(hit._replace(length=hit.whole))
        if hit.length and not self._rows:
            # Alone, there is nobody to wait for: what is cached must not stand in the way.
            tries.append(hit._replace(length=0, snapshot=None))
        for each in tries:
            row = self._start(request_id, tokens, sampling, boundaries, each, adapter)
            if row is not None:
                return row
        if adapter is not None:
            self.adapters.release(adapter)
        return None

    def _start(
        self,
        request_id: str,
        tokens: array[int],
        sampling: RowSampling,
        boundaries: Sequence[int],
        hit: Hit,
        adapter: str | None,
    ) -> Row | None:
        cache = self.cache(adapter)
        leased = cache.lend(tokens, hit.length)
        if leased is None:
            return None
        lease, anchor = leased
        spare = self.budget.spare(len(tokens))
        tail = None
        if self.attention == "lent":
            tail = Tail.take(self.pool, anchor, round_capacity(len(tokens) - anchor), spare)
        if tail is None and (self.attention == "lent" or not self.reserve(spare)):
            cache.cancel(lease)
            return None
        states = self._states(hit, cache, lease)
        ends = self._snapshot_ends(hit, boundaries, len(tokens))
        row = Row(
            request_id, tokens, sampling, adapter, cache, lease, hit.length, ends, tail, states
        )
        if tail is not None:
            for block in cache.pieces(lease, anchor):
                tail.put(anchor, list(block.layers))
                anchor += block.length
            cache.adopt(lease, row)
        self._rows.add(row)
        if not row.remaining:
            self._prefilled(row)
        return row

    def _snapshot_ends(self, hit: Hit, boundaries: Sequence[int], length: int) -> list[int]:
        """Where a row's prefill stops to keep its states."""
        if not self.stateful:
            return []
        forks = [hit.kv_length] if hit.kv_length - hit.length >= FORK else []
        return sorted({b for b in (*boundaries, *forks) if hit.length < b < length - 1})

    def prefill(self, row: Row, most: int) -> int:
        """Runs up to ``most`` prompt tokens of a row; how many it were."""
        most = min(most, MOST_CHUNK)
        stop = min([len(row.tokens) - 1, row.length + most, *row.boundaries[:1]])
        count = stop - row.length
        assert count > 0
        plan = None
        if row.tail is not None:
            plan = PrefillPlan(row, row.cache.lent(row.lease, row.anchor), count)
        ids = mx.array(row.tokens[row.length : stop].tolist())[None]
        self._forward(ids, [row], plan, row.states)
        compact(row.states)
        stored: list[Any] = [arrays(row.states)]
        if row.tail is not None:
            stored += [row.tail.slab.keys, row.tail.slab.values]
        # Only what the KV depends on is computed: no last layer's output, no logits.
        mx.eval(stored)
        row.length = stop
        self.input_tokens += count
        boundary = row.boundaries[:1] == [stop]
        if boundary:
            row.boundaries.pop(0)
        committed = row.cache.commit(row.lease, row, row.tokens[:stop])
        if (boundary or not row.remaining) and committed:
            self._snapshot(row)
        if not row.remaining:
            row.cache.share(row.lease, row)
            self._prefilled(row)
        return count

    def mark(self, row: Row, position: int) -> None:
        """Makes a prefilling row keep its states at ``position``, which another prompt shares."""
        if self.stateful and row.length < position < len(row.tokens) - 1:
            row.boundaries = sorted({*row.boundaries, position})

    def make_room(self, row: Row) -> bool:
        """Whether the row's next token has a place; grows its tail by one granule if not."""
        if row.tail is None:
            return self.reserve(0)
        if row.length < row.tail.end:
            return True
        grown = row.tail.moved(row.anchor, row.length, row.tail.capacity + GRANULE)
        row.tail = grown or row.tail
        return grown is not None

    def submit(self, rows: Sequence[Row]) -> None:
        """Starts one decode step for all ``rows``, each of which has room for a token."""
        assert self._inflight is None
        logits = self.decode(rows)
        samplers = [r.sampling for r in self._decoding]
        sampled = sample(logits, samplers, [len(r.tokens) for r in self._decoding])
        commit(samplers, sampled.tokens)
        results = [sampled.tokens, sampled.logprobs, sampled.top]
        mx.async_eval(results, arrays(self._batch.caches))
        self._inflight = InFlight(self._decoding, sampled)
        self._decoding = []

    def decode(self, rows: Sequence[Row]) -> mx.array:
        """Logits [B, V] after each row's last token, in ``self._decoding``'s order; lazy."""
        ordered = self._batch.order(rows) if self._own else sorted(rows, key=rank)
        plan = None
        if self._lent:
            lent = {r: r.cache.lent(r.lease, r.anchor) if r.anchor else [] for r in ordered}
            plan = DecodePlan(ordered, lent)
        ids = mx.array([[r.tokens[r.length]] for r in ordered])
        logits = self._forward(ids, ordered, plan, self._batch.caches)
        for row in ordered:
            row.length += 1
        self.input_tokens += len(ordered)
        self._decoding = ordered
        return logits[:, -1]

    def position(self, row: Row) -> int:
        """Where the row's logits are in the result of the last ``decode``."""
        return self._decoding.index(row)

    @property
    def busy(self) -> bool:
        """Whether a submitted step has not been collected."""
        return self._inflight is not None

    def collect(self) -> list[Choice]:
        """Waits for the submitted step; appends its tokens to the rows."""
        assert self._inflight is not None
        rows, sampled = self._inflight
        self._inflight = None
        mx.eval(sampled.tokens)
        choices = []
        details = describe(sampled)
        tokens: Any = sampled.tokens.tolist()
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.tokens.append(token)
            logprob, top = details.get(i, (None, ()))
            choices.append(Choice(row, token, logprob, top))
        return choices

    def release(self, row: Row) -> None:
        """Ends a row in any phase; what it computed stays in the tree as far as memory allows."""
        keep = row.cache.enabled and bool(self._own)
        if row.batch is not None:
            self._batch.leave(row, keep=keep)
        self._rows.discard(row)
        committed = row.cache.commit(row.lease, row, row.tokens[: row.length])
        if committed and keep:
            self._snapshot(row)
        row.cache.release(row.lease, row)
        if row.tail is not None:
            row.tail.free()
            row.tail = None
        if row.adapter is not None:
            self.adapters.release(row.adapter)

    # parts

    def _row_lengths(self) -> list[int]:
        return [len(row.tokens) for row in self._rows]

    def _forget_adapter(self, digest: str) -> None:
        self.forest.drop(Namespace(self.digest, digest))

    def _make_cache(self, clock: Clock) -> PrefixCache:
        return PrefixCache(
            reserve=self.reserve,
            stateful=self.stateful,
            copying=self.attention == "copied",
            enabled=self._caching,
            keeping=self.keeping,
            tree=RadixTree(clock),
        )

    def _states(self, hit: Hit, cache: PrefixCache, lease: Lease) -> dict[int, Any]:
        if not self._own:
            return {}
        fresh = make_prompt_cache(self.model)
        states = {i: fresh[i] for i in self._own}
        if isinstance(hit.snapshot, Snapshot):
            states.update(duplicate(hit.snapshot.states))
        if self.attention == "copied" and hit.length:
            blocks = list(cache.pieces(lease, 0))
            whole = [c for c in states.values() if type(c) is KVCache]
            for i, kv in enumerate(whole):
                kv.keys, kv.values = join([b.layers[i] for b in blocks])
                kv.offset = hit.length
            mx.eval(arrays(states))
        return states

    def _prefilled(self, row: Row) -> None:
        if self._own:
            self._batch.join(row)

    def _snapshot(self, row: Row) -> None:
        """Keeps the states that cannot be cut, at the row's present length."""
        if not self.stateful or not row.cache.wants_snapshot(row.lease, row.length):
            return
        states = {i: s for i, s in row.single_states().items() if type(s) is not KVCache}
        if self.reserve(nbytes(states)):
            kept = take_snapshot(states)
            row.cache.snapshot(row.lease, row.length, kept, kept.nbytes)

    def _forward(
        self, ids: mx.array, rows: Sequence[Row], plan: Plan | None, states: dict[int, Any]
    ) -> mx.array:
        """The model's logits [B, L, V] for ``ids`` [B, L] of ``rows``, lazy."""
        total = len(self._lent) + len(self._own)
        for lent in self._lent.values():
            lent.plan = plan
        caches = [self._lent[i] if i in self._lent else states[i] for i in range(total)]
        with self._adapters.using([row.adapter for row in rows]):
            logits: mx.array = self.model(ids, cache=caches)
        for lent in self._lent.values():
            lent.plan = None  # a plan holds on to slabs and blocks
        return logits
