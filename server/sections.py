"""Cuts a reply at its markers: which text is shown, which is thought, which is a call.

Markers are matched in decoded text, so it does not matter how a model tokenises them.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from mlx_lm.generate import TextStateMachine

from engine.tokenizer import Tokenizer

Kind = Literal["text", "thought", "call", "gap", "end"]
TEXT: Kind = "text"
THOUGHT: Kind = "thought"
CALL: Kind = "call"
GAP: Kind = "gap"  # what stands between two messages; nobody sees it
END: Kind = "end"  # a stop string or an end marker: no more comes

Edges = dict[str, list[tuple[str, str]]]
STOPPED = "stop:"  # with the number of the stop string: the state it leads to


class Segment(NamedTuple):
    """Some text of one kind.

    ``name`` begins a call whose name stands outside its text; ``stop`` is the stop string that
    an END comes of.
    """

    kind: Kind
    text: str = ""
    name: str = ""
    stop: str | None = None


class Sections(Protocol):
    """A reply's format."""

    @property
    def kind(self) -> Kind:
        """What the text that comes next is, unless a marker is before it."""
        ...

    def split(self, text: str) -> list[Segment]:
        """The next pieces; what may yet be part of a marker is held back."""
        ...

    def flush(self) -> list[Segment]:
        """What was held back, when no more text comes."""
        ...


class Matcher:
    """Runs text through states that strings lead out of; stop strings lead to an end."""

    def __init__(
        self, edges: Edges, first: str, stops: Sequence[str] = (), deaf: Collection[str] = ()
    ) -> None:
        """In ``deaf`` states stop strings mean nothing."""
        self._stops = stops
        ends: Edges = {f"{STOPPED}{i}": [] for i in range(len(stops))}
        for state, leads in edges.items():
            if state not in deaf:
                leads.extend((stop, f"{STOPPED}{i}") for i, stop in enumerate(stops))
        whole = {**edges, **ends}.items()
        strings = [string for leads in edges.values() for string, _ in leads]
        self._most_held = max(map(len, strings), default=1) - 1
        machine = _machine(tuple((state, tuple(leads)) for state, leads in whole))
        self._runtime = machine.make_state(first)

    @property
    def state(self) -> str:
        """Where it stands."""
        return str(self._runtime[0])

    def split(self, text: str) -> list[tuple[str, str]]:
        """State and text of all that is decided; an end is a state of its own."""
        runtime, pieces = TextStateMachine.split(self._runtime, text)
        state, node, states, held = runtime
        # It holds all back from where a match first began, also where that has failed since.
        rest = max(0, len(held) - self._most_held)
        self._runtime = (state, node, states, held[rest:])
        return [*pieces[:-1], (state, pieces[-1][1] + held[:rest])]

    def flush(self) -> str:
        """What was held back."""
        self._runtime, rest, _ = TextStateMachine.flush(self._runtime)
        return str(rest)

    def stop_of(self, state: str) -> str | None:
        """The stop string that leads to ``state``."""
        if not state.startswith(STOPPED):
            return None
        return self._stops[int(state.removeprefix(STOPPED))]


@functools.lru_cache(maxsize=8)
def _machine(edges: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]) -> TextStateMachine:
    """Made once for all replies of a request, which may be many; it does not change with use."""
    return TextStateMachine(dict(edges))


class Stopped:
    """A format with stop strings in its text, where its own states cannot have them."""

    def __init__(self, sections: Sections, stops: Sequence[str]) -> None:
        self._sections = sections
        self._stops = stops
        self._matcher = self._fresh()

    @property
    def kind(self) -> Kind:
        return self._sections.kind

    def split(self, text: str) -> list[Segment]:
        return self._stopped(self._sections.split(text))

    def flush(self) -> list[Segment]:
        return [*self._stopped(self._sections.flush()), *self._held()]

    def _stopped(self, segments: Sequence[Segment]) -> list[Segment]:
        found: list[Segment] = []
        for segment in segments:
            if segment.kind != TEXT:
                found += [*self._held(), segment]
                continue
            for state, piece in self._matcher.split(segment.text):
                found.append(Segment(_kind(state), piece, stop=self._matcher.stop_of(state)))
        return found

    def _held(self) -> list[Segment]:
        """What was held back of a text that is over."""
        rest, self._matcher = self._matcher.flush(), self._fresh()
        return [Segment(TEXT, rest)] if rest else []

    def _fresh(self) -> Matcher:
        return Matcher({TEXT: []}, TEXT, self._stops)


class MarkedSections:
    """Thoughts and calls between markers of their own, as most templates have them.

    Stop strings are for the text: what a thought or the arguments of a call hold ends no reply.
    In an answer of a given form (``formed``) there are none: what looks like one is its text.
    """

    def __init__(
        self, edges: Edges, stops: Sequence[str], *, thinking: bool, formed: bool = False
    ) -> None:
        first = THOUGHT if thinking else TEXT
        self._matcher = Matcher(edges, first, stops, deaf=(THOUGHT, CALL))
        self._formed = formed
        self._stops = stops

    @property
    def kind(self) -> Kind:
        return _kind(self._matcher.state)

    def split(self, text: str) -> list[Segment]:
        found = self._split(text)
        begun = any(s.kind == TEXT and s.text.strip() for s in found)
        if self._formed and begun and self.kind == TEXT:
            self._formed = False
            rest = self._matcher.flush()
            self._matcher = Matcher({TEXT: []}, TEXT, self._stops)
            found += self._split(rest)
        return found

    def _split(self, text: str) -> list[Segment]:
        return [
            Segment(_kind(state), piece, stop=self._matcher.stop_of(state))
            for state, piece in self._matcher.split(text)
        ]

    def flush(self) -> list[Segment]:
        kind = self.kind
        return [Segment(kind, self._matcher.flush())]


def _kind(state: str) -> Kind:
    for kind in (TEXT, THOUGHT, CALL):
        if state == kind:
            return kind
    return END


def marked(
    tokenizer: Tokenizer | None,
    stops: Sequence[str],
    tools: Sequence[Mapping[str, Any]],
    *,
    thinking: bool,
    formed: bool = False,
) -> MarkedSections | None:
    """The sections of a model's replies; None where all of a reply is text."""
    edges: Edges = {TEXT: [], THOUGHT: [], CALL: []}
    if tokenizer is not None and tokenizer.think is not None:
        start, end = tokenizer.think
        edges[TEXT].append((start, THOUGHT))
        edges[THOUGHT].append((end, TEXT))
    if tokenizer is not None and tokenizer.tool_call is not None and tools:
        start, end = tokenizer.tool_call
        edges[TEXT].append((start, CALL))
        edges[THOUGHT].append((start, CALL))
        if end:
            edges[CALL].append((end, TEXT))
    if not (stops or any(edges.values())):
        return None
    return MarkedSections(edges, stops, thinking=thinking, formed=formed)
