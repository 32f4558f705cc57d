"""A Prometheus under test: started on loopback, asked, ended."""

from __future__ import annotations

import math
import queue
import re
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import yaml

from tests.server.process import PATIENCE, ROOT, end

DEPLOY = ROOT / "deploy"
BINARIES = {name: shutil.which(name) for name in ("prometheus", "promtool")}
MISSING = [name for name, path in BINARIES.items() if path is None]
LISTENS = re.compile(r'msg="Listening on".*address=(127\.0\.0\.1:\d+)')
READY = re.compile(r"Server is ready to receive web requests")


def write_config(folder: Path, target: str, key: Path) -> Path:
    """The configuration of this repository, for another target, and quicker."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "commons"
    job["static_configs"] = [{"targets": [target]}]
    job["authorization"] = {"credentials_file": str(key)}
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


class Prometheus:
    """``prometheus`` on a free port; use it as a context manager."""

    def __init__(self, config: Path) -> None:
        self.process = subprocess.Popen(
            [
                str(BINARIES["prometheus"]),
                f"--config.file={config}",
                f"--storage.tsdb.path={config.parent / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        address = self._until(LISTENS)[1]
        self._until(READY)
        self._http = httpx.Client(base_url=f"http://{address}/api/v1", timeout=PATIENCE)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)

    def _until(self, pattern: re.Pattern[str]) -> re.Match[str]:
        while True:
            if found := pattern.search(self._lines.get(timeout=PATIENCE)):
                return found

    def _get(self, path: str, **params: str) -> Any:
        answer = self._http.get(path, params=params)
        assert answer.status_code == 200, (params, answer.text)
        return answer.json()["data"]

    def rules(self) -> list[dict[str, Any]]:
        """All rules, and how their last evaluation went."""
        return [rule for group in self._get("/rules")["groups"] for rule in group["rules"]]

    def values(self, expr: str) -> list[float]:
        """The numbers of an expression just now, without those that are none."""
        found = (float(s["value"][1]) for s in self._get("/query", query=expr)["result"])
        return [value for value in found if math.isfinite(value)]

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end(self.process, self._reader)
        self._http.close()
