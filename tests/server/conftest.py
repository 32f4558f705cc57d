"""One server process for all tests that need no process of their own, and what stands for one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from server import cli, launch
from server.config import ServerConfig
from tests.models import model_dir
from tests.oracle import Oracle

from .process import PATIENCE, Server
from .scripted import Scripted
from .support import CONTEXT

first: dict[str, str] = {}  # scrapes, by the server's address


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny() -> str:
    """The path of the served model."""
    return str(model_dir("qwen3"))


@pytest.fixture(scope="session")
def oracle(tiny: str) -> Oracle:
    return Oracle(model_dir("qwen3"))


@pytest.fixture(scope="session")
def server(tiny: str) -> Iterator[Server]:
    with Server("--model", tiny, "--max-context", str(CONTEXT)) as server:
        server.ready()
        first[server.url] = httpx.get(f"{server.url}/metrics").text
        yield server


@pytest.fixture(scope="session")
def first_scrape(server: Server) -> str:
    """The metrics as they were before any request."""
    return first[server.url]


@pytest.fixture(scope="session")
def narrow(tiny: str) -> Iterator[Server]:
    """A server that runs one request and lets two wait."""
    with Server("--model", tiny, "--max-rows", "1", "--max-queue", "2") as server:
        yield server.ready()


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def service() -> Scripted:
    """An engine that says what it is told, behind the whole application."""
    return Scripted()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ServerConfig]:
    """What servers were started with; none of them runs."""
    configs: list[ServerConfig] = []

    def run(config: ServerConfig) -> int:
        configs.append(config)
        return 0

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(cli, "leave", leave)
    return configs
