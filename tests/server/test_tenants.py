"""``[tenants.NAME]`` and ``[[public]]``: what they may hold, and the line for what they may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.info import PublicPrompt, ServiceConfig
from scheduler.tenant import Limits, Tenant
from server.public_prompts import parse_public
from server.settings_file import ConfigError, SettingsFile, read_file
from server.tenants import parse_tenants

OFFER = {"main": ["sql", "style"], "coder": ["sql"]}


def read(tmp_path: Path, text: str) -> SettingsFile:
    path = tmp_path / "commons.toml"
    path.write_text(text)
    return read_file(path, ["tenants", "public"])


def tenants(file: SettingsFile) -> tuple[Tenant, ...]:
    with file.blamed():
        return parse_tenants(file.values.get("tenants", {}), OFFER)


def public(file: SettingsFile) -> tuple[PublicPrompt, ...]:
    with file.blamed():
        return parse_public(file.values.get("public", []), ServiceConfig("main", "main"), OFFER)


def test_every_setting(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        """
        [tenants.team-a]
        weight = 2
        priority = "batch"
        trust_domain = "lab.1"
        models = ["main", "coder"]
        adapters = ["style", "coder:sql"]
        requests-per-minute = 60
        tokens_per_minute = 100_000
        concurrent = 8
        queued = 0
        max_tokens = 512
        context = 4096
        cache_share = 0.25
        """,
    )
    limits = Limits(60, 100_000, 8, 0, 512, 4096, 0.25)
    assert tenants(file) == (
        Tenant(
            "team-a",
            2.0,
            "batch",
            "lab.1",
            frozenset({"main", "coder"}),
            frozenset({"style", "coder:sql"}),
            limits,
        ),
    )


def test_defaults_and_order(tmp_path: Path) -> None:
    file = read(tmp_path, "[tenants.b]\n[tenants.a]\nmodels = []\n")
    assert tenants(file) == (Tenant("b"), Tenant("a", models=frozenset()))
    assert tenants(read(tmp_path, "")) == ()


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("tenants = 3", 1, "'tenants' is not a table: write [tenants.NAME]"),
        ("[tenants]\na = 3", 2, "'tenants.a' is not a table: write [tenants.a]"),
        ("\n[tenants.a]\n\ncolour = 1", 4, "[tenants.a]: 'colour' is not a setting; there are"),
        ("[tenants.a]\nweight = 0", 2, "[tenants.a]: 'weight' is above 0, not 0"),
        ("[tenants.a]\n# b\nweight = -1.5", 3, "'weight' is above 0, not -1.5"),
        ("[tenants.a]\nweight = nan", 2, "'weight' is finite, not nan"),
        ("[tenants.a]\nweight = inf", 2, "'weight' is finite, not inf"),
        (f"[tenants.a]\nweight = {'9' * 400}", 2, "'weight' is finite"),
        ("[tenants.a]\nweight = true", 2, "'weight' is a number, not True"),
        ('[tenants.a]\nweight = "1"', 2, "'weight' is a number, not '1'"),
        ('[tenants.a]\npriority = "high"', 2, "'priority' is one of interactive, batch"),
        ("[tenants.a]\npriority = 1", 2, "'priority' is a text, not 1"),
        ('[tenants.a]\ntrust_domain = ""', 2, "'trust_domain' is a name"),
        ('[tenants.a]\ntrust_domain = "salt:x"', 2, "'trust_domain' is a name"),
        ('[tenants.a]\nmodels = "main"', 2, "'models' is a list of names, not 'main'"),
        ("[tenants.a]\nmodels = [1]", 2, "'models' is a list of names, not [1]"),
        ('[tenants.a]\nmodels = [\n"main",\n"nope"]', 4, "there is no model 'nope'; there are:"),
        ('[tenants.a]\nadapters = ["zzz"]', 2, "there is no adapter 'zzz'; there are: coder:sql"),
        ('[tenants.a]\nadapters = ["coder:style"]', 2, "there is no adapter 'coder:style'"),
        ("[tenants.a]\nrequests_per_minute = 0", 2, "'requests_per_minute' is at least 1, not 0"),
        ("[tenants.a]\ntokens-per-minute = 1.5", 2, "'tokens_per_minute' is a whole number"),
        ("[tenants.a]\nconcurrent = true", 2, "'concurrent' is a whole number, not True"),
        ("[tenants.a]\nqueued = -1", 2, "'queued' is at least 0, not -1"),
        ("[tenants.a]\nmax_tokens = 0", 2, "'max_tokens' is at least 1"),
        ("[tenants.a]\ncontext = 1", 2, "'context' is at least 2"),
        ("[tenants.a]\ncache_share = 0", 2, "'cache_share' is above 0 and at most 1"),
        ("[tenants.a]\ncache_share = 1.01", 2, "'cache_share' is above 0 and at most 1"),
        ("[tenants.a]\nmax_tokens = 1\nmax-tokens = 2", 3, "'max-tokens' is given twice"),
        ("[tenants.a]\nweight = 1\nweight = 2", 3, "this key is given twice"),
        ("[tenants.a]\n\n[tenants.a]", 3, "twice"),
        ('[tenants."a b"]', 1, "no name for a tenant"),
        ("[tenants.admin]", 1, "what the keys to /admin are called"),
        ("[tenants.metrics]", 1, "what the keys to /metrics are called"),
        ("[tenants.public]", 1, "the lender of [[public]] prompts"),
        ("[tenants.a]\nweight = ", 2, "Invalid value"),
        ("[tenants.a", 1, "Expected ']'"),
        ("[tenants.a]\r\nweight = 1\r\nqueued = x", 3, "Invalid value"),
        ("colours = 1", 1, "'colours' is not a setting"),
    ],
)
def test_what_cannot_be_used_is_said_with_file_line_and_reason(
    tmp_path: Path, text: str, line: int, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tenants(read(tmp_path, text))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'commons.toml'}:{line}: ")
    assert said in message
    assert "\n" not in message


def test_public_prompts(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        """
        [[public]]
        text = "Once upon"
        [[public]]
        model = "coder"
        adapter = "sql"
        messages = [
            {role = "developer", content = "Be brief."},
            {role = "user", content = [{type = "text", text = "Hello"}]},
        ]
        [[public.tools]]
        type = "function"
        function = {name = "f", parameters = {type = "object"}}
        """,
    )
    text, chat = public(file)
    assert text == PublicPrompt("main", text="Once upon")
    assert (chat.model, chat.adapter, chat.text) == ("coder", "sql", None)
    # As a template gets them from a request with the same messages.
    assert chat.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    )
    function = {"name": "f", "parameters": {"type": "object"}}
    assert chat.tools == ({"type": "function", "function": function},)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("public = 1", 1, "'public' is not a list of tables: write [[public]]"),
        ("[public]\ntext = 'a'", 1, "'public' is not a list of tables"),
        ("[[public]]", 1, "[[public]]: give either 'text' or 'messages'"),
        ("[[public]]\ntext = 'a'\nmessages = []", 1, "give either 'text' or 'messages'"),
        ("[[public]]\ntext = 'a'\n[[public]]\ntext = ''", 4, "'text' is a text, not ''"),
        ("[[public]]\ntext = 'a'\ncolour = 1", 3, "'colour' is not a setting"),
        ("[[public]]\ntext = 'a'\nmodel = 'zzz'", 3, "there is no model 'zzz'"),
        ("[[public]]\ntext = 'a'\nadapter = 'zzz'", 3, "'main' has no adapter 'zzz'"),
        ("[[public]]\nmodel = 'coder'\ntext = 'a'\nadapter = 'style'", 4, "there are: sql"),
        ("[[public]]\ntext = 'a'\ntools = []", 3, "'tools' go with 'messages'"),
        ("[[public]]\nmessages = []", 2, "messages is empty"),
        ("[[public]]\nmessages = [{role = 'x', content = 'a'}]", 2, "'x' is not a role"),
        ("[[public]]\nmessages = [{content = 'a'}]", 2, "missing required field `role`"),
        ("[[public]]\nmessages = 'a'", 2, "Expected `array`"),
    ],
)
def test_public_prompt_that_cannot_be_used(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        public(read(tmp_path, text))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'commons.toml'}:{line}: ")
    assert said in message
    assert "\n" not in message
