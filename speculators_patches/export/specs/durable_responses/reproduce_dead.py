"""Nothing listens at the endpoint (run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/unit/scripts")
from test_regenerate_exit import make_command, make_server, rows_of

server = make_server()
command = make_command(Path(tempfile.mkdtemp()), server)
server.shutdown()
server.server_close()
code = command()
rows = rows_of(command.outfile)
if code == 0:
    print(f"DEFECT: {len(rows)} rows of 12, and exit code 0")
    sys.exit(1)
print(f"OK: {len(rows)} rows of 12, and exit code {code}")
