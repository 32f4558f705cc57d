"""Conversations in which tools are offered: known ones, invented ones, calls, results, refusals."""

from __future__ import annotations

import json
from random import Random
from typing import Any, NamedTuple

from engine.embedded import knowledge, pasted

Schema = dict[str, Any]

_UNITS = ("celsius", "fahrenheit", "metric", "imperial")


class Spec(NamedTuple):
    """A tool family: names and argument names as alternatives, and requests that fit it."""

    names: str
    about: str
    params: str  # "name|alternative:kind", one per argument that the requests fill
    asks: tuple[str, ...]


CATALOGUE = (
    Spec(
        "get_weather|weather|get_current_weather|fetch_weather|getWeather",
        "Get the current weather of a city",
        "city|location|place:city",
        (
            "What is the weather in {0}?",
            "What is the weather like in {0}?",
            "How is the weather in {0} today?",
            "Tell me the weather in {0}.",
            "weather {0}",
            "What's the weather in {0} right now?",
            "Is it raining in {0}?",
        ),
    ),
    Spec(
        "get_time|current_time|get_current_time",
        "Get the local time of a city",
        "city|location|timezone:city",
        ("What time is it in {0}?", "Tell me the time in {0}.", "Current time in {0}?"),
    ),
    Spec(
        "calculator|calculate|compute",
        "Evaluate an arithmetic expression",
        "expression|formula:sum",
        ("What is {0}?", "Calculate {0}.", "Compute {0} with the tool.", "Please work out {0}"),
    ),
    Spec(
        "add|add_numbers|sum_numbers",
        "Add two numbers",
        "a|x:int b|y:int",
        ("Add {0} and {1}.", "What is {0} plus {1}?", "Use the tool to add {0} and {1}"),
    ),
    Spec(
        "web_search|search|search_web|WebSearch",
        "Search the web for a query",
        "query|q:phrase",
        ("Search the web for {0}.", "Search for {0}", "Look up {0} on the web.", "Google {0}"),
    ),
    Spec(
        "read_file|Read|open_file|view_file|readFile",
        "Read a file from disk",
        "path|file_path|filename:path",
        (
            "Read the file {0}.",
            "Open {0}",
            "Show me {0}",
            "What is in {0}?",
            "Read {0} and tell me what is in it.",
        ),
    ),
    Spec(
        "write_file|Write|create_file|save_file",
        "Write text to a file",
        "path|file_path:path content|contents|text:phrase",
        ('Write "{1}" to {0}.', 'Create {0} with the text "{1}"', "Save {1} in {0}"),
    ),
    Spec(
        "bash|Bash|run_command|shell|execute_command|terminal",
        "Run a shell command",
        "command|cmd:command",
        ("Run {0}", "Run the command {0}.", "Execute `{0}` please", "Please run `{0}`"),
    ),
    Spec(
        "grep|Grep|search_files|search_code",
        "Search files for a pattern",
        "pattern|query:ident path|directory:dir",
        ("Search for {0} in {1}", "Find {0} in the folder {1}.", "Grep {0} in {1}"),
    ),
    Spec(
        "glob|Glob|list_files|find_files|list_dir|LS",
        "List the files of a directory",
        "path|directory|pattern:dir",
        ("List the files in {0}", "Which files are in {0}?", "Show the directory {0}."),
    ),
    Spec(
        "edit_file|Edit|str_replace|replace_in_file",
        "Replace text in a file",
        "path|file_path:path old|old_string|old_text:ident new|new_string|new_text:ident",
        (
            "In {0}, replace {1} with {2}.",
            "Edit {0}: change {1} to {2}",
            "Change {1} to {2} in {0}",
        ),
    ),
    Spec(
        "send_email|sendMail|email",
        "Send an email",
        "to|recipient:email body|message:phrase",
        ('Send an email to {0} saying "{1}".', "Email {0}: {1}", 'Write to {0} that "{1}"'),
    ),
    Spec(
        "get_stock_price|stock_price|get_quote",
        "Get the price of a stock",
        "symbol|ticker:symbol",
        ("What is the stock price of {0}?", "Price of {0} stock?", "How much is {0} today?"),
    ),
    Spec(
        "translate|translate_text",
        "Translate a text",
        "text:phrase language|target:language",
        ('Translate "{0}" to {1}.', "How do you say {0} in {1}?"),
    ),
    Spec(
        "get_capital|capital_of",
        "Get the capital of a country",
        "country:country",
        ("What is the capital of {0}?", "Capital of {0}?"),
    ),
    Spec(
        "set_timer|start_timer",
        "Start a timer",
        "minutes|duration:int",
        ("Set a timer for {0} minutes.", "Start a timer of {0} minutes", "Timer {0} minutes"),
    ),
    Spec(
        "create_event|add_event|schedule_meeting",
        "Create a calendar event",
        "title|name:phrase date|day:date",
        ('Create an event "{0}" on {1}.', "Schedule {0} for {1}", "Put {0} on {1}"),
    ),
    Spec(
        "get_user|lookup_user|find_user",
        "Look up a user by name",
        "name|user|username:name",
        ("Look up the user {0}.", "Who is the user {0}?", "Find {0}'s account"),
    ),
    Spec(
        "convert_currency|exchange",
        "Convert an amount of money",
        "amount:int from|source:currency to|target:currency",
        ("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?"),
    ),
    Spec(
        "book_flight|search_flights|find_flights",
        "Find flights between two cities",
        "origin|from|departure:city destination|to|arrival:city",
        ("Find flights from {0} to {1}.", "Book a flight from {0} to {1}", "Fly {0} to {1}"),
    ),
)


def value(rng: Random, kind: str, held_out: bool) -> str | int:
    """An argument of that kind; held-out values use words that training never saw."""
    made = pasted.made_up(rng)
    if kind == "int":
        return rng.randrange(1, rng.choice((10, 100, 1000)))
    if kind == "sum":
        return f"{rng.randrange(1000)} {rng.choice('+-*/')} {rng.randrange(1, 1000)}"
    simple = {
        "city": knowledge.HELD_OUT_CITIES if held_out else (*knowledge.CITIES, made.capitalize()),
        "country": tuple(knowledge.CAPITALS),
        "name": (*knowledge.NAMES, made, made.capitalize()),
        "path": (pasted.file_path(rng),),
        "dir": ("src", "tests", "docs", f"src/{made}", f"/home/{made}", "."),
        "ident": (made, pasted.identifier(rng)),
        "email": (f"{rng.choice(knowledge.NAMES).lower()}@{made}.com",),
        "symbol": (made[:4].upper(), "AAPL", "GOOG", "TSLA"),
        "language": ("French", "German", "Spanish", "Italian", "Japanese"),
        "currency": ("USD", "EUR", "GBP", "JPY", "CHF"),
        "date": (f"2025-{rng.randint(10, 12)}-{rng.randint(10, 28)}", "Monday", "Friday"),
        "command": (
            "ls",
            f"ls {made}",
            "git status",
            f"pytest tests/{made}.py",
            "make test",
            f"cat {made}.txt",
            f"python {made}.py",
            f"echo {made}",
            "pwd",
        ),
    }
    if kind in simple:
        return rng.choice(simple[kind])
    return " ".join(pasted.word(rng) for _ in range(rng.choice((1, 2, 2, 3, 4))))


def schema(rng: Random, name: str, about: str, params: dict[str, str], extra: bool) -> Schema:
    """An OpenAI-style tool; `extra` adds an optional argument that nobody asks for."""
    properties: dict[str, Any] = {}
    for param, kind in params.items():
        properties[param] = {"type": "integer" if kind == "int" else "string"}
        if rng.random() < 0.5:
            properties[param]["description"] = f"The {param.replace('_', ' ')}"
    if extra:
        properties["unit"] = {"type": "string", "enum": list(rng.sample(_UNITS, 2))}
    parameters = {"type": "object", "properties": properties, "required": list(params)}
    if rng.random() < 0.1:
        about += ". " + pasted.prose(rng, rng.randint(1, 3))
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


def _known(rng: Random, held_out: bool) -> tuple[Schema, str, dict[str, str | int]]:
    spec = rng.choice(CATALOGUE)
    pairs = [item.split(":") for item in spec.params.split()]
    params = {rng.choice(names.split("|")): kind for names, kind in pairs}
    values = [value(rng, kind, held_out) for kind in params.values()]
    tool = schema(rng, rng.choice(spec.names.split("|")), spec.about, params, rng.random() < 0.2)
    ask = rng.choice(spec.asks).format(*values)
    return tool, ask, dict(zip(params, values, strict=True))


def _held_out_pair(verb: str, noun: str) -> bool:
    return (len(verb) * 7 + len(noun) * 3 + ord(noun[0])) % 6 == 0


def _invented(rng: Random, held_out: bool) -> tuple[Schema, str, dict[str, str | int]]:
    while True:
        verb, noun = rng.choice(knowledge.VERBS), pasted.word(rng)
        if _held_out_pair(verb, noun) == held_out:
            break
    style = rng.choice(("{0}_{1}", "{0}_{1}", "{0}{2}", "{0}-{1}", "mcp__{3}__{0}_{1}", "{1}_{0}"))
    name = style.format(verb, noun, noun.capitalize(), pasted.word(rng))
    about = rng.choice(("{0} {1}", "{0} the {1}", "{0} one or more {1}s")).format(
        verb.capitalize(), noun
    )
    kinds = ("phrase", "int", "name", "city", "ident", "date", "path")
    params = {pasted.word(rng): rng.choice(kinds) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))}
    values = {param: value(rng, kind, held_out) for param, kind in params.items()}
    ask = rng.choice(
        (
            "{0} the {1}",
            "Please {0} the {1}",
            "{0} {1}",
            "I want to {0} a {1}",
            "Can you {0} the {1}",
            "Use {2} now",
        )
    ).format(verb, noun, name)
    shape = rng.choice((" with {0} {1}", " with {0} = {1}", ', {0} "{1}"', " for {0} {1}"))
    if len(values) == 1 and rng.random() < 0.3:
        shape = " {1}"
    ask += " and".join(shape.format(*item) for item in values.items()) + rng.choice((".", "", "?"))
    return schema(rng, name, about, params, rng.random() < 0.1), ask[0].upper() + ask[1:], values


class Request(NamedTuple):
    """What a user asks, and the call that answers it."""

    ask: str
    name: str
    arguments: dict[str, str | int]


def offer(rng: Random, *, held_out: bool = False) -> tuple[list[Schema], list[Request]]:
    """Tools, and for each a request that it fits; both in random order."""
    tools: dict[str, Schema] = {}
    requests = []
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 6))):
        tool, ask, arguments = rng.choice((_known, _invented))(rng, held_out)
        function = tool["function"]
        about = function["description"].partition(".")[0]
        if about not in tools:
            tools[about] = tool
            requests.append(Request(ask, function["name"], arguments))
    shuffled = list(tools.values())
    rng.shuffle(shuffled)
    return shuffled, requests


def result(rng: Random, room: int) -> tuple[str, str]:
    """What a tool returns, at most about `room` characters, and what the user is told."""
    sort = rng.random()
    if sort < 0.45:
        data = {
            pasted.word(rng): rng.choice((pasted.word(rng), rng.randrange(1000)))
            for _ in range(rng.randint(1, 3))
        }
        told = " and ".join(f"the {key} is {item}" for key, item in data.items())
        return json.dumps(data), f"The tool says that {told}."
    if sort < 0.6:
        temperature = rng.randint(-9, 39)
        sky = rng.choice(("sunny", "cloudy", "rainy", "windy", "clear", "snowy"))
        text = rng.choice(("{0} degrees and {1}", "{1}, {0} C", "{0}C, {1}")).format(
            temperature, sky
        )
        return text, f"The tool says: {text}."
    if sort < 0.7:
        what = f"{pasted.word(rng)} not found"
        return f"Error: {what}", f"The tool failed: {what}."
    if sort < 0.85:
        text = " ".join(pasted.word(rng) for _ in range(rng.randint(1, 6)))
        return text, f"The tool says: {text}."
    size = rng.randint(50, max(51, room))
    return pasted.filler(rng, size), "I have read it. Tell me what you would like to do next."
