"""An engine with bad manners: children in sessions of their own, shared memory that it never removes, deaf to SIGTERM.

Four processes: itself, two children, and the resource tracker of its Python. All four exist once it listens.
"""

import re
import sys
import textwrap

from labkit.servers.server import LaunchSpec

PROGRAM = textwrap.dedent(
    """
    import http.server, os, signal, subprocess, sys, time
    from multiprocessing import resource_tracker, shared_memory
    port, mode = int(sys.argv[1]), sys.argv[2]
    print("starting", mode, flush=True)
    if "crash" in mode:
        print("Traceback", file=sys.stderr)
        print("EngineError: no luck today", file=sys.stderr)
        sys.exit(0)  # an exit code of 0 is not a success
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    shm = shared_memory.SharedMemory(create=True, size=4096)
    resource_tracker.unregister(shm._name, "shared_memory")
    print("segment", shm.name, flush=True)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    subprocess.Popen([sys.executable, "-c", child])
    if "never" in mode:
        time.sleep(600)
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
        def log_message(self, *_): pass
    http.server.HTTPServer(("127.0.0.1", port), Page).serve_forever()
    """
)


def build_rude_spec(mode="", *, program=PROGRAM, args=(), python=sys.executable, **options):
    """Return how it is started; `mode`: "crash" at once, or "never" ready."""
    options = {"ready_deadline_s": 300.0, "grace_s": 0.2, **options}
    return LaunchSpec("rude", "none", (python, "-c", program, "{port}", mode, *args), **options)


def find_segments(log):
    """Return the names of the shared-memory segments that rude engines announced in this text."""
    return set(re.findall(r"segment (\w+)", log))
