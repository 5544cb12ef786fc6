"""A server that never answers the first request (run where this PR's test file is)."""

import threading
import time
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/unit/scripts")
from test_regenerate_silent import make_command, make_server

server = make_server()
command = make_command(Path(tempfile.mkdtemp()), server)
server.behaviour = lambda request, count: "silent" if count == 1 else "answer"
began = time.monotonic()
try:
    command(request_timeout=1.0)
except TypeError:  # no such option
    threading.Thread(target=command, daemon=True).start()
    time.sleep(10)
    print("DEFECT: still waiting after 10 s, and there is no option that limits it")
    sys.stdout.flush()
    import os

    os._exit(1)
print(f"OK: over after {time.monotonic() - began:.0f} s")
