"""A kill has left half a line; --resume (run where this PR's test file is)."""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/unit/scripts")
from test_regenerate_torn import ALL_ROWS, make_command, make_server, rows_of

server = make_server()
command = make_command(Path(tempfile.mkdtemp()), server)
command()
command.outfile.write_bytes(command.outfile.read_bytes()[:-100])
command(resume=True)
try:
    found = sorted(rows_of(command.outfile))
except json.JSONDecodeError:
    lines = command.outfile.read_text().splitlines()
    print(f"DEFECT: of {len(lines)} lines one cannot be read, of {len(ALL_ROWS)} rows")
    sys.exit(1)
if found != ALL_ROWS:
    print(f"DEFECT: {len(found)} rows, expected {len(ALL_ROWS)}")
    sys.exit(1)
print(f"OK: all {len(found)} rows are there, once")
