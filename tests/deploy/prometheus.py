"""A Prometheus under test: started on loopback, asked, ended."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import yaml

from tests.server.process import PATIENCE, ROOT, Program

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


class Prometheus(Program):
    """``prometheus`` on a free port; use it as a context manager."""

    def __init__(self, config: Path) -> None:
        super().__init__(
            [
                str(BINARIES["prometheus"]),
                f"--config.file={config}",
                f"--storage.tsdb.path={config.parent / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ]
        )
        address = self.until(LISTENS)[1]
        self.until(READY)
        self._http = httpx.Client(base_url=f"http://{address}/api/v1", timeout=PATIENCE)

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()
        super().__exit__(kind, error, trace)
