"""The radix tree against a naive model, over random sequences of operations."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache.node import Node
from cache.radix import RadixTree
from cache.shares import Part

Tokens = tuple[int, ...]

SEQUENCES = st.lists(st.integers(0, 2), min_size=1, max_size=10).map(tuple)
PICKS = st.integers(0, 1000)
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}
USERS = st.sampled_from(sorted(WEIGHTS))


def label_bytes(label: int) -> int:
    return label % 5


@dataclass(frozen=True)
class Labels:
    """A payload that records which token it is for: one label a token, of different sizes."""

    labels: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return sum(map(label_bytes, self.labels))


@dataclass
class Record:
    """What the model knows of the node that ends after a sequence."""

    tick: int
    snapshot: tuple[object, int] | None = None


class Model:
    """Where nodes end, as whole sequences; an edge begins where the longest prefix ends.

    Labels and users are kept per prefix, that is per token, and loans as the sequences that are
    on loan.
    """

    def __init__(self) -> None:
        self.ends: dict[Tokens, Record] = {}
        self.labels: dict[Tokens, int] = {}
        self.users: dict[Tokens, tuple[str, ...]] = {}
        self.lent: list[Tokens] = []

    def start(self, end: Tokens) -> int:
        return max(
            (len(e) for e in self.ends if len(e) < len(end) and is_prefix(e, end)), default=0
        )

    def payload(self, end: Tokens, start: int | None = None) -> Labels:
        first = self.start(end) if start is None else start
        return Labels(tuple(self.labels[end[: i + 1]] for i in range(first, len(end))))

    def loans(self, end: Tokens) -> int:
        return sum(is_prefix(end, lent) for lent in self.lent)

    def children(self, end: Tokens) -> list[Tokens]:
        return [e for e in self.ends if len(e) > len(end) and e[: self.start(e)] == end]

    def free_leaves(self, user: str | None = None) -> list[Tokens]:
        """In the order in which a user gives them up."""
        leaves = [e for e in self.ends if not self.children(e) and not self.loans(e)]
        own = [e for e in leaves if user is None or user in self.users[e]]
        return sorted(own, key=lambda e: self.ends[e].tick)

    def use(self, end: Tokens, user: str) -> None:
        for length in range(1, len(end) + 1):
            if user not in self.users[end[:length]]:
                self.users[end[:length]] += (user,)

    def charged(self) -> dict[str, int]:
        """Bytes by user; the first ones of a node take the odd bytes."""
        total = dict.fromkeys(WEIGHTS, 0)
        for end, record in self.ends.items():
            users = self.users[end]
            nbytes = self.payload(end).nbytes + (record.snapshot or (None, 0))[1]
            for i, user in enumerate(users):
                total[user] += nbytes // len(users) + (i < nbytes % len(users))
        return {user: nbytes for user, nbytes in total.items() if nbytes}

    def next_to_go(self) -> list[tuple[Tokens, str]]:
        """The leaf to go and who gives it up: of several where they are equal."""
        charged = self.charged()
        ranks = {
            (leaves[0], user): (-charged.get(user, 0) / weight, self.ends[leaves[0]].tick)
            for user, weight in WEIGHTS.items()
            if (leaves := self.free_leaves(user))
        }
        return [each for each, rank in ranks.items() if rank == min(ranks.values())]

    def match(self, tokens: Tokens) -> tuple[Tokens, int]:
        """The end of the node reached, () for the root, and the tokens matched."""
        length = max((common(tokens, e) for e in self.ends), default=0)
        if not length:
            return (), 0
        reached = [e for e in self.ends if len(e) >= length and e[:length] == tokens[:length]]
        return min(reached, key=len), length

    def remove(self, end: Tokens) -> None:
        for length in range(self.start(end), len(end)):
            del self.labels[end[: length + 1]], self.users[end[: length + 1]]
        del self.ends[end]


def is_prefix(short: Tokens, long: Tokens) -> bool:
    return long[: len(short)] == short


def common(a: Tokens, b: Tokens) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


def sequence(node: Node) -> Tokens:
    return tuple(token for above in node.path() for token in above.key)


class RadixMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.tree = RadixTree()
        self.tree.shares.configure({user: Part(weight) for user, weight in WEIGHTS.items()})
        self.evicted = 0
        self.model = Model()
        self.locks: list[Node] = []  # in step with model.lent
        self.clock = 0
        self.next_label = 0

    # Helpers

    def node(self, end: Tokens) -> Node:
        found = self.tree.match(end)
        assert found.length == len(end) == found.node.end
        return found.node

    def pick(self, pick: int) -> tuple[Node, Tokens]:
        ends = sorted(self.model.ends)
        end = ends[pick % len(ends)]
        return self.node(end), end

    def label(self, tokens: Tokens, start: int) -> None:
        for length in range(start, len(tokens)):
            self.next_label += 1
            self.model.labels[tokens[: length + 1]] = self.next_label

    def used(self, end: Tokens) -> None:
        self.clock += 1
        for other, record in self.model.ends.items():
            if is_prefix(other, end):
                record.tick = self.clock

    def cut(self, end: Tokens, at: int) -> Node:
        node, start = self.node(end), self.model.start(end)
        upper, lower = self.model.payload(end[:at], start), self.model.payload(end, at)
        self.model.ends[end[:at]] = Record(self.model.ends[end].tick)
        return self.tree.split(node, at, upper, lower)

    def grown(self) -> bool:
        return bool(self.model.ends)

    # Rules

    @rule(tokens=SEQUENCES, prefer_extend=st.booleans(), user=USERS)
    def add(self, tokens: Tokens, prefer_extend: bool, user: str) -> None:
        """As a cache commits: match, split where the match ends inside an edge, add the rest."""
        end, length = self.model.match(tokens)
        node = self.tree.match(tokens).node
        if end and length < len(end):
            node, end = self.cut(end, length), end[:length]
        if length == len(tokens):
            self.tree.touch(node)
            self.tree.use(node, user)
            self.model.use(end, user)
        elif prefer_extend and end and not (self.model.children(end) or node.snapshot):
            self.label(tokens, length)
            self.model.ends[tokens] = self.model.ends.pop(end)
            for at in range(length, len(tokens)):
                self.model.users[tokens[: at + 1]] = self.model.users[end]
            self.model.lent = [tokens if lent == end else lent for lent in self.model.lent]
            self.tree.extend(node, tokens[length:], self.model.payload(tokens))
        else:
            self.label(tokens, length)
            self.model.ends[tokens] = Record(0)
            self.model.use(end, user)
            for at in range(length, len(tokens)):
                self.model.users[tokens[: at + 1]] = (user,)
            new = self.tree.insert(node, tokens[length:], self.model.payload(tokens), user)
            assert sequence(new) == tokens
        self.used(tokens)

    @precondition(grown)
    @rule(pick=PICKS, at=PICKS)
    def split(self, pick: int, at: int) -> None:
        node, end = self.pick(pick)
        start = self.model.start(end)
        if len(end) - start > 1:
            upper = self.cut(end, start + 1 + at % (len(end) - start - 1))
            assert node.parent is upper
            assert sequence(node) == end

    @precondition(grown)
    @rule(pick=PICKS)
    def merge(self, pick: int) -> None:
        node, end = self.pick(pick)
        above = end[: self.model.start(end)]
        record = self.model.ends.get(above)
        if (
            record is None
            or record.snapshot
            or self.model.children(above) != [end]
            or self.model.loans(above) != self.model.loans(end)
            or self.model.users[above] != self.model.users[end]
        ):
            return
        self.model.ends[end].tick = record.tick
        del self.model.ends[above]
        self.tree.merge(node, self.model.payload(end))

    @precondition(grown)
    @rule(pick=PICKS)
    def remove(self, pick: int) -> None:
        leaves = sorted(self.model.free_leaves())
        if leaves:
            end = leaves[pick % len(leaves)]
            self.tree.remove(self.node(end))
            self.model.remove(end)

    @rule(count=st.integers(1, 3))
    def evict(self, count: int) -> None:
        for _ in range(count):
            found = self.tree.shares.first()
            possible = self.model.next_to_go()
            if found is None:
                assert not possible
                assert self.tree.shares.evict() == -1
                return
            end, user = sequence(found[0]), found[1]
            assert (end, user) in possible
            self.give_up(end, user, self.tree.shares.evict())

    @precondition(grown)
    @rule(pick=PICKS, user=USERS)
    def let_go(self, pick: int, user: str) -> None:
        leaves = self.model.free_leaves(user)
        if leaves:
            end = leaves[pick % len(leaves)]
            self.give_up(end, user, self.node(end).give_up(user))

    def give_up(self, end: Tokens, user: str, freed: int) -> None:
        users = tuple(u for u in self.model.users[end] if u != user)
        if users:
            assert freed == 0
            for length in range(self.model.start(end), len(end)):
                self.model.users[end[: length + 1]] = users
            return
        record = self.model.ends[end]
        assert freed == self.model.payload(end).nbytes + (record.snapshot or (None, 0))[1]
        self.evicted += len(end) - self.model.start(end)
        self.model.remove(end)

    @precondition(grown)
    @rule(pick=PICKS, user=USERS)
    def use(self, pick: int, user: str) -> None:
        node, end = self.pick(pick)
        self.tree.use(node, user)
        self.model.use(end, user)

    @precondition(grown)
    @rule(pick=PICKS)
    def lock(self, pick: int) -> None:
        node, end = self.pick(pick)
        self.tree.lock(node)
        self.locks.append(node)
        self.model.lent.append(end)

    @precondition(lambda self: self.locks)
    @rule(pick=PICKS)
    def unlock(self, pick: int) -> None:
        index = pick % len(self.locks)
        self.tree.unlock(self.locks.pop(index))
        self.model.lent.pop(index)

    @precondition(grown)
    @rule(pick=PICKS)
    def touch(self, pick: int) -> None:
        node, end = self.pick(pick)
        self.tree.touch(node)
        self.used(end)

    @precondition(grown)
    @rule(pick=PICKS)
    def replace_payload(self, pick: int) -> None:
        node, end = self.pick(pick)
        self.label(end, self.model.start(end))
        self.tree.set_payload(node, self.model.payload(end))

    @precondition(grown)
    @rule(pick=PICKS, nbytes=st.none() | st.integers(0, 9))
    def snapshot(self, pick: int, nbytes: int | None) -> None:
        node, end = self.pick(pick)
        if nbytes is None:
            self.tree.drop_snapshot(node)
            self.model.ends[end].snapshot = None
        else:
            state = object()
            self.tree.set_snapshot(node, state, nbytes)
            self.model.ends[end].snapshot = (state, nbytes)

    @rule(tokens=SEQUENCES, as_array=st.booleans())
    def match(self, tokens: Tokens, as_array: bool) -> None:
        before = self.tree.dump()
        node, length = self.tree.match(array("i", tokens) if as_array else tokens)
        assert (sequence(node), length) == self.model.match(tokens)
        assert self.tree.dump() == before

    # What holds after every step

    @invariant()
    def agrees(self) -> None:
        self.tree.check()
        model = self.model
        nodes = {sequence(node): node for node in self.tree.walk()}
        assert nodes.keys() == model.ends.keys()
        for end, record in model.ends.items():
            node = nodes[end]
            assert (node.start, node.end) == (model.start(end), len(end))
            assert node.payload == model.payload(end)
            assert (node.loans, node.last_used) == (model.loans(end), record.tick)
            assert (node.snapshot, node.snapshot_nbytes) == (record.snapshot or (None, 0))
            tokens = range(node.start, node.end)
            assert {model.users[end[: at + 1]] for at in tokens} == {node.users}
        snapshots = sum(r.snapshot[1] for r in model.ends.values() if r.snapshot)
        assert self.tree.snapshot_nbytes == snapshots
        assert self.tree.nbytes == snapshots + sum(map(label_bytes, model.labels.values()))
        assert (self.tree.nodes, self.tree.tokens) == (len(model.ends), len(model.labels))
        assert self.tree.shares.charged() == model.charged()
        assert self.tree.ledger.nbytes == self.tree.nbytes
        assert self.tree.ledger.evicted_tokens == self.evicted

    @invariant()
    def lists_in_order(self) -> None:
        model = self.model
        assert (self.tree.shares.first() is None) == (not model.free_leaves())
        held = [e for e, record in model.ends.items() if record.snapshot and not model.loans(e)]
        held.sort(key=lambda e: (model.ends[e].tick, len(e)))
        assert [sequence(n) for n in self.tree.lru_snapshots()] == held

    @invariant()
    def locks_hold_what_they_held(self) -> None:
        assert [sequence(node) for node in self.locks] == self.model.lent


RadixMachine.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRadixMachine = RadixMachine.TestCase
