"""Who answers requests? Engines as child processes that leave nothing behind.

    with run_vllm(find_model("target")) as server:
        server.base_url, server.model

`run_server(name)` starts any of them by name, `build_launch_spec(name)` shows the command without starting it. The fake
server and its scripts are in `labkit.servers.fake`, the comparison of two engines' tokens in
`labkit.servers.token_comparison`.
"""

from labkit.servers.engines import build_launch_spec, run_server, run_transformers, run_vllm
from labkit.servers.fake import run_fake
from labkit.servers.server import Server, ServerError

__all__ = ["Server", "ServerError", "build_launch_spec", "run_fake", "run_server", "run_transformers", "run_vllm"]
