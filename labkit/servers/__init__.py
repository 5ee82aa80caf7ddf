"""Who answers requests? Engines as child processes that leave nothing behind.

    with run_vllm(find_model("target")) as server:
        server.base_url, server.model

`run_server(name)` starts any of them by name, `estimate_launch(name)` shows the command without starting it. The fake
server's plan is in `labkit.servers.fake`, its scripts in `labkit.servers.fake_script`, the comparison of two engines'
tokens in `labkit.servers.agreement`.
"""

from labkit.servers.base import Server
from labkit.servers.engines import estimate_launch, run_server
from labkit.servers.fake import run_fake
from labkit.servers.launch import ServerError
from labkit.servers.transformers import run_transformers
from labkit.servers.vllm import run_vllm

__all__ = ["Server", "ServerError", "estimate_launch", "run_fake", "run_server", "run_transformers", "run_vllm"]
