"""The config that is served without a file."""

import os
from pathlib import Path
from typing import Any

from proxy.config.build import Config, build

DEMO = Path(__file__).resolve().parents[2] / "backends" / "demo"


def default_config(running: Config | None = None) -> Config:
    """Return the config for a start without a file: the demo model, and OpenAI for all others if its key is set."""
    typed: dict[str, Any] = {
        "policy": [{"use": "metadata_limits"}, {"use": "safety_identifier"}],
        "cache": {"use": "memory"},
        "backend": [{"name": "demo", "use": "local", "path": str(DEMO)}],
        "route": [{"model": "headgate-demo", "backend": "demo"}],
    }
    if os.environ.get("OPENAI_API_KEY"):
        openai = {"name": "openai", "use": "upstream", "base_url": "https://api.openai.com/v1", "keeps_state": True}
        typed["backend"].append(openai | {"api_key": "env:OPENAI_API_KEY"})
        typed["route"].append({"model": "*", "backend": "openai"})
    return build(typed, running)
