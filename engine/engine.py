"""One loaded model with its prefix cache: admit rows, prefill them, run decode steps, release.

Synchronous; everything happens on the engine thread. Knows nothing of queues or clients.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from cache.block import join
from cache.forest import Forest
from cache.keeping import Keeping
from cache.lease import NO_HIT, Hit, Lease
from cache.loan import ANYBODY, NOBODY, Borrower
from cache.namespace import Namespace, weights_digest
from cache.prefix_cache import PrefixCache
from cache.radix import RadixTree
from cache.shares import Ledger

from .adapter_store import AdapterStore
from .adapters import Adapters
from .budget import Budget, Memory, RowBytes
from .decoding import Decoding, Outcome
from .drafting import Drafting
from .kv_memory import KvMemory
from .loader import Loaded
from .network import Attention, Network
from .options import ADAPTER_SLOTS
from .plans import PrefillPlan, Span
from .rows import Row, Tail
from .sampling import RowSampling
from .slabs import GRANULE, SlabPool, round_capacity
from .speculation import Drafter
from .states import Snapshot, arrays, compact, duplicate, nbytes, take_snapshot
from .variant import BASE, NGRAM, Variant

MOST_CHUNK = 1024  # tokens of one prefill pass; bounds the scores that attention holds at once
FORK = 32  # tokens; from here on it pays to learn where prompts of a stateful model fork


class Engine:
    """Runs one model for many rows.

    ``kv_memory`` bounds the KV of rows and tree together, in bytes or shared with other models.
    ``attention`` is as ``Network`` has it. At most ``adapter_slots`` adapters are in memory.
    ``draft`` is a draft model, which must lend too; its KV comes out of the same memory.
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
        draft: Loaded | None = None,
    ) -> None:
        self.model = loaded.model
        self.digest = weights_digest(loaded.path)
        self.vocab_size = loaded.vocab_size
        self.attention: Attention = attention
        self.network = Network(self.model, attention)
        self.stateful = self.network.stateful
        self.batchable = self.network.batchable
        shapes = self.network.shapes
        self.token_bytes = sum(s.token_bytes for s in shapes)
        lends = attention == "lent"
        self.pool = SlabPool(shapes if lends else (), self.reserve)
        self.drafter = None if draft is None else _drafter(draft, len(shapes))
        self._draft_pool = self.pool
        if self.drafter is not None:
            self._draft_pool = SlabPool((*shapes, *self.drafter.network.shapes), self.reserve)
        self.keeping = keeping or Keeping()
        self._caching = prefix_cache
        memory = KvMemory.of(kv_memory)
        self.forest = Forest(self._make_cache, memory.shares)
        row_bytes = RowBytes(self.network.state_bytes, 0 if lends else self.token_bytes)
        pools = [self.pool] if self.drafter is None else [self.pool, self._draft_pool]
        self.budget = Budget(
            memory, pools, self.forest, row_bytes, self._row_lengths, self._row_bytes
        )
        loras = Adapters(self.model)
        self.adapters = AdapterStore(loras, adapter_slots, self._forget_adapter)
        self.decoding = Decoding(self.network, loras)
        self._loras = loras
        self._prefilled_tokens = 0
        self._rows: set[Row] = set()

    # memory

    @property
    def used(self) -> int:
        """Bytes of KV and states held by rows and tree."""
        states = self.decoding.batch.nbytes + sum(nbytes(r.states) for r in self._rows)
        return self.budget.pooled + self.forest.nbytes + states

    @property
    def input_tokens(self) -> int:
        """Tokens that went through the model and were kept."""
        return self._prefilled_tokens + self.decoding.input_tokens

    def reserve(self, size: int, tenant: str | None = None) -> bool:
        """Whether ``size`` more bytes fit; see ``KvMemory.reserve``."""
        return self.budget.reserve(size, tenant)

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

    def namespace(self, variant: Variant = BASE, domain: str = NOBODY) -> Namespace:
        """The name of what may share KV: a model with adapter and draft model, in a domain."""
        adapter = self.adapters.digest(variant.adapter) if variant.adapter else ""
        draft = ""
        if self.drafter is not None and variant.draft not in (None, NGRAM):
            draft = self.drafter.digest
        return Namespace(self.digest, adapter, draft, domain)

    def cache(self, variant: Variant = BASE, domain: str = NOBODY) -> PrefixCache:
        """The prefix cache of what runs as ``variant`` in a trust domain."""
        return self.forest.of(self.namespace(variant, domain))

    def lookup(
        self, tokens: array[int], variant: Variant = BASE, borrower: Borrower = ANYBODY
    ) -> Hit:
        """What the cache has for a prompt."""
        cache = self.forest.find(self.namespace(variant, borrower.domain))
        return NO_HIT if cache is None else cache.lookup(tokens)

    def admit(
        self,
        request_id: str,
        tokens: array[int],
        sampling: RowSampling,
        boundaries: Sequence[int] = (),
        variant: Variant = BASE,
        borrower: Borrower = ANYBODY,
    ) -> Row | None:
        """Starts a row on the longest cached prefix of ``tokens``; ``None``: not now.

        Raises AdapterError where the files of its adapter cannot be read any more.
        """
        adapter = variant.adapter
        if adapter is not None and not self.adapters.acquire(adapter):
            return None
        hit = self.lookup(tokens, variant, borrower)
        tries = [hit]
        if hit.whole < hit.length:
            # No memory to cut the last block: do with those that match as they are.
            tries.append(hit._replace(length=hit.whole))
        if hit.length and not self._rows:
            # Alone, there is nobody to wait for: what is cached must not stand in the way.
            tries.append(hit._replace(length=0, snapshot=None))
        for each in tries:
            row = self._start(request_id, tokens, sampling, boundaries, each, variant, borrower)
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
        variant: Variant,
        borrower: Borrower,
    ) -> Row | None:
        cache = self.cache(variant, borrower.domain)
        leased = cache.lend(tokens, hit.length, borrower.tenant)
        if leased is None:
            return None
        lease, anchor = leased
        drafting = None
        if variant.draft is not None:
            drafting = Drafting(variant.draft, hit.length)
        by_model = drafting is not None and drafting.name != NGRAM
        pool = self._draft_pool if by_model else self.pool
        spare = self.budget.spare(len(tokens))
        # As long as a row runs, what others need more can be waited for.
        tail, tenant = None, borrower.tenant if self.budget.memory_in_use else None
        if self.attention == "lent":
            tail = Tail.take(pool, anchor, round_capacity(len(tokens) - anchor), spare, tenant)
        if tail is None and (self.attention == "lent" or not self.reserve(spare, tenant)):
            cache.cancel(lease)
            return None
        states = self._states(hit, cache, lease)
        ends = self._snapshot_ends(hit, boundaries, len(tokens))
        row = Row(
            id=request_id,
            tokens=tokens,
            sampling=sampling,
            variant=variant,
            cache=cache,
            lease=lease,
            length=hit.length,
            boundaries=ends,
            tail=tail,
            states=states,
            drafting=drafting,
            borrower=borrower,
            loan=cache.borrow(lease),
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
            plan = PrefillPlan(Span(row, row.length, count), row.lent())
        ids = mx.array(row.tokens[row.length : stop].tolist())[None]
        with self._loras.using([row.variant.adapter]):
            self.network.forward(ids, plan, row.states)
        if self.drafter is not None and row.drafts_by_model:
            self.drafter.prefill(row, stop)
        compact(row.states)
        stored: list[Any] = [arrays(row.states)]
        if row.tail is not None:
            stored += [row.tail.slab.keys, row.tail.slab.values]
        # Only what the KV depends on is computed: no last layer's output, no logits.
        mx.eval(stored)
        row.length = stop
        self._prefilled_tokens += count
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

    @property
    def busy(self) -> bool:
        """Whether a submitted step has not been collected."""
        return self.decoding.busy

    def submit(self, rows: Sequence[Row], left: Sequence[int] | None = None) -> None:
        """Starts one decode step for all ``rows``, each of which has room for a token."""
        self.decoding.submit(rows, left)

    def collect(self) -> list[Outcome]:
        """Waits for the submitted step; appends its tokens to the rows."""
        return self.decoding.collect()

    def release(self, row: Row) -> None:
        """Ends a row in any phase; what it computed stays in the tree as far as memory allows."""
        keep = row.cache.enabled and bool(self.network.own)
        if row.batch is not None:
            self.decoding.batch.leave(row, keep=keep)
        if self.drafter is not None and row.drafts_by_model and row.cache.enabled:
            self.drafter.catch_up(row)
        self._rows.discard(row)
        committed = row.cache.commit(row.lease, row, row.tokens[: row.length])
        if committed and keep:
            self._snapshot(row)
        row.cache.release(row.lease, row)
        if row.tail is not None:
            row.tail.free()
            row.tail = None
        if row.variant.adapter is not None:
            self.adapters.release(row.variant.adapter)

    # parts

    def _row_lengths(self) -> list[int]:
        return [len(row.tokens) for row in self._rows]

    def _row_bytes(self) -> Mapping[str, int]:
        sizes: Counter[str] = Counter()
        for row in self._rows:
            size = len(row.tokens) * self.token_bytes if row.tail is None else row.tail.nbytes
            sizes[row.borrower.tenant] += size
        return sizes

    def _forget_adapter(self, digest: str) -> None:
        self.forest.drop(lambda namespace: namespace.adapter == digest)

    def _make_cache(self, ledger: Ledger) -> PrefixCache:
        return PrefixCache(
            reserve=self.reserve,
            stateful=self.stateful,
            copying=self.attention == "copied",
            enabled=self._caching,
            keeping=self.keeping,
            tree=RadixTree(ledger),
        )

    def _states(self, hit: Hit, cache: PrefixCache, lease: Lease) -> dict[int, Any]:
        states = self.network.fresh_states()
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
        if self.network.own:
            self.decoding.batch.join(row)

    def _snapshot(self, row: Row) -> None:
        """Keeps the states that cannot be cut, at the row's present length."""
        if not self.stateful or not row.cache.wants_snapshot(row.lease, row.length):
            return
        states = {i: s for i, s in row.single_states().items() if type(s) is not KVCache}
        size = nbytes(states)
        if row.cache.admits(row.lease, size) and self.reserve(size, row.borrower.tenant):
            kept = take_snapshot(states)
            row.cache.snapshot(row.lease, row.length, kept, kept.nbytes)


def _drafter(draft: Loaded, first: int) -> Drafter:
    """The draft model, its layers behind the ``first`` ones of the target."""
    network = Network(draft.model, "lent", first)
    return Drafter(network, weights_digest(draft.path), draft.vocab_size)
