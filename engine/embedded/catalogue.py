"""The tools that the embedded model meets again and again: their schemas and fitting requests."""

from __future__ import annotations

from typing import NamedTuple


class Spec(NamedTuple):
    """A tool family: names and argument names as alternatives, and requests that fit it."""

    names: str
    about: str
    params: str  # "name|alternative:kind", one per argument that the requests fill
    asks: tuple[str, ...]


CATALOGUE = (
    Spec(
        "get_weather|get_weather|get_current_weather|weather",
        "Get the current weather of a city",
        "city|city|location:city",
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
        "city|location:city",
        ("What time is it in {0}?", "Tell me the time in {0}.", "Current time in {0}?"),
    ),
    Spec(
        "calculator|calculate",
        "Evaluate an arithmetic expression",
        "expression|formula:sum",
        ("Calculate {0}.", "Compute {0}", "Please work out {0}."),
    ),
    Spec(
        "add|add_numbers",
        "Add two numbers",
        "a|x:int b|y:int",
        ("Add {0} and {1}.", "Please add {0} and {1}"),
    ),
    Spec(
        "web_search|search_web|WebSearch",
        "Search the web for a query",
        "query|q:phrase",
        ("Search the web for {0}.", "Search for {0}", "Look up {0} on the web.", "Google {0}"),
    ),
    Spec(
        "read_file|Read",
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
        "write_file|Write",
        "Write text to a file",
        "path|file_path:path content|text:phrase",
        ('Write "{1}" to {0}.', 'Create {0} with the text "{1}"', "Save {1} in {0}"),
    ),
    Spec(
        "bash|Bash|shell|run_command",
        "Run a shell command",
        "command|cmd:command",
        ("Run {0}", "Run the command {0}.", "Execute `{0}` please", "Please run `{0}`"),
    ),
    Spec(
        "grep|Grep|search_files",
        "Search files for a pattern",
        "pattern|query:ident path|directory:dir",
        ("Search for {0} in {1}", "Find {0} in the folder {1}.", "Grep {0} in {1}"),
    ),
    Spec(
        "list_files|Glob|list_dir",
        "List the files of a directory",
        "path|pattern:dir",
        ("List the files in {0}", "Which files are in {0}?", "Show the directory {0}."),
    ),
    Spec(
        "edit_file|Edit",
        "Replace text in a file",
        "path|file_path:path old_string|old:ident new_string|new:ident",
        (
            "In {0}, replace {1} with {2}.",
            "Edit {0}: change {1} to {2}",
            "Change {1} to {2} in {0}",
        ),
    ),
    Spec(
        "send_email|send_mail",
        "Send an email",
        "to|recipient:email body|message:phrase",
        ('Send an email to {0} saying "{1}".', "Email {0}: {1}", 'Write to {0} that "{1}"'),
    ),
    Spec(
        "get_stock_price|stock_price",
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
        "set_timer|start_timer",
        "Start a timer",
        "minutes|duration:int",
        ("Set a timer for {0} minutes.", "Start a timer of {0} minutes", "Timer {0} minutes"),
    ),
    Spec(
        "create_event|add_event",
        "Create a calendar event",
        "title|name:phrase date:date",
        ('Create an event "{0}" on {1}.', "Schedule {0} for {1}", "Put {0} on {1}"),
    ),
    Spec(
        "get_user|lookup_user",
        "Look up a user by name",
        "name|user|username:name",
        ("Look up the user {0}.", "Who is the user {0}?", "Find {0}'s account"),
    ),
    Spec(
        "convert_currency",
        "Convert an amount of money",
        "amount:int from|source:currency to|target:currency",
        ("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?"),
    ),
    Spec(
        "book_flight|find_flights",
        "Find flights between two cities",
        "origin:city destination:city",
        ("Find flights from {0} to {1}.", "Book a flight from {0} to {1}", "Fly {0} to {1}"),
    ),
)

# Offered by coding agents, and never called here: name, description, arguments.
IDLE: tuple[tuple[str, str, str], ...] = (
    ("Task", "Launch a new agent for a task of several steps", "description prompt"),
    ("TodoWrite", "Create and manage a list of what is to be done", "todos"),
    ("NotebookEdit", "Replace a cell of a notebook", "notebook_path new_source"),
    ("WebFetch", "Fetch a page and answer a question about it", "url prompt"),
    ("ExitPlanMode", "Tell the user that the plan is ready", "plan"),
    ("KillShell", "Kill a shell that runs in the background", "shell_id"),
    ("BashOutput", "Get the output of a shell in the background", "bash_id filter"),
    ("AskUserQuestion", "Ask the user a question with several answers", "questions"),
    ("SlashCommand", "Run a command of the main conversation", "command"),
    ("Skill", "Load a skill by its name", "skill"),
    ("update_plan", "Update the plan of the task", "explanation plan"),
    ("apply_patch", "Apply a patch to files", "input"),
    ("view_image", "Show a local image", "path"),
    ("write_stdin", "Write to a session that runs", "session_id chars"),
)
