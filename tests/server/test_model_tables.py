"""``[models.NAME]`` in a settings file: what it may hold, and the line for what it may not."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from scheduler.info import ModelConfig
from server.model_tables import parse_models
from server.settings_file import ConfigError


def parse(text: str, **more: Any) -> tuple[ModelConfig, ...]:
    return parse_models(tomllib.loads(text).get("models", {}), "main", **more)


def test_every_setting() -> None:
    (model,) = parse("""
        [models."org/big-1.5"]
        model = "some/repo"
        dtype = "float32"
        max-context = 4096
        trust_remote_code = true
        keep_loaded = true
        draft-model = "some/small"
        num_draft_tokens = 6
        adapters = {sql = "/a/sql", style = "/a/style"}
    """)
    assert model == ModelConfig(
        name="org/big-1.5",
        model="some/repo",
        dtype="float32",
        max_context=4096,
        trust_remote_code=True,
        keep_loaded=True,
        adapters=(("sql", "/a/sql"), ("style", "/a/style")),
        draft_model="some/small",
        draft_name="small",
        num_draft_tokens=6,
    )
    assert model.drafts == ("small", "ngram")


def test_defaults_and_order() -> None:
    models = parse('[models.b]\nmodel = "x"\n[models.a]\nmodel = "y"')
    assert models == (ModelConfig("b", "x"), ModelConfig("a", "y"))
    assert parse("") == ()


@pytest.mark.parametrize(("said", "drafts"), [("ngram", ("ngram",)), ("none", ())])
def test_drafts_without_a_model(said: str, drafts: tuple[str, ...]) -> None:
    (model,) = parse(f'[models.a]\nmodel = "x"\ndraft_model = "{said}"')
    assert model.drafts == drafts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models = 3", "'models' is not a table"),
        ('models.a = "path"', "'models.a' is not a table: write [models.a]"),
        ("[models.a]", "[models.a]: 'model' is missing"),
        ('[models.a]\nmodel = ""', "[models.a]: 'model' is missing"),
        ("[models.a]\nmodel = 3", "[models.a]: 'model' is a text, not 3"),
        ('[models.a]\nmodel = "x"\ncolour = 1', "[models.a]: 'colour' is not a setting; there are"),
        ('[models.a]\nmodel = "x"\ndtype = "int3"', "'dtype' is one of float32, bfloat16, float16"),
        ('[models.a]\nmodel = "x"\nmax_context = 1', "'max_context' is at least 2, not 1"),
        ('[models.a]\nmodel = "x"\nmax_context = "9"', "'max_context' is a whole number"),
        ('[models.a]\nmodel = "x"\nmax_context = true', "'max_context' is a whole number"),
        ('[models.a]\nmodel = "x"\ndraft_model = 3', "'draft_model' is a text, not 3"),
        ('[models.a]\nmodel = "x"\nnum_draft_tokens = 0', "'num_draft_tokens' is at least 1, not"),
        ('[models.a]\nmodel = "x"\nnum_draft_tokens = 17', "'num_draft_tokens' is at most 16"),
        ('[models.a]\nmodel = "x"\nkeep_loaded = 1', "'keep_loaded' is true or false, not 1"),
        ('[models.a]\nmodel = "x"\nadapters = ["y"]', "'adapters' is a table of NAME = PATH"),
        ('[models.a]\nmodel = "x"\nadapters = {y = 1}', "the adapter 'y' is a path, not 1"),
        ('[models.a]\nmodel = "x"\nadapters = {y = ""}', "[models.a]: 'y=' is not NAME=PATH"),
        ('[models.a]\nmodel = "x"\nadapters = {"y z" = "p"}', "'y z' is no name for an adapter"),
        ('[models.a]\nmodel = "x"\nadapters = {a = "p"}', "two models with the name 'a'"),
        ('[models.a]\nmodel = "x"\nadapters = {main = "p"}', "two models with the name 'main'"),
        ('[models.main]\nmodel = "x"', "[models.main]: there are two models with the name 'main'"),
        ('[models.known]\nmodel = "x"', "there are two models with the name 'known'"),
        ('[models."a:b"]\nmodel = "x"', "[models.a:b]: no name for a model"),
        ('[models.""]\nmodel = "x"', "no name for a model"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, adapters=["known"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
