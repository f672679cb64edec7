"""LiteLLM's proxy on loopback, until standard input ends; for the Python of LiteLLM's own environment."""

import os
import sys
import threading
from pathlib import Path

from litellm import run_server


def end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    config = Path(__file__).with_suffix(".yaml")
    run_server(["--config", str(config), "--host", "127.0.0.1", "--port", "0"])
