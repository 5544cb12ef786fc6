"""regenerate-responses loses no answer, doubles none, and says when it failed."""

from speculators_patches.export import code
from speculators_patches.export.edits import (
    argument,
    expression,
    imports,
    insert,
    parameter,
    statement,
)
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "durable_responses/code_regenerate.py"
_FILE = "cli/regenerate_responses.py"

_WHOLE = Step(
    slug="whole-conversations",
    subject="fix(regenerate): append conversations whole and repair what a kill left",
    problem="""
        Rows go through a text buffer that is flushed in pieces, so a killed run can leave half a
        line, or only the first rows of a conversation. `--resume` appends its next row to the half
        line, and neither can be read; a conversation of which one row is there counts as done, so
        its later rows never come. Run again without `--resume`, everything is appended a second
        time.
        """,
    fix="""
        Each row says how many rows its conversation has, and a conversation is appended in one
        write that is taken back if it fails (a full disk). `--resume` first drops half a line at
        the end and conversations that are not whole; they are asked again. It reads the file once
        and writes it anew only if something has to go. Without `--resume` an
        output file that has rows is refused.
        """,
    risk="""
        Rows get one more metadata field. Files of earlier versions, whose rows do not have it, are
        taken as they are, half a line apart. A conversation that the data set has twice is
        answered twice, as before, and both are kept. Scripts that ran twice into one file on
        purpose have to pass `--resume` or another name. A power cut can still take back what the
        disk had not written; there is no fsync.
        """,
    reproduction="reproduce_torn.py",
    files={
        _FILE: (
            imports("import os"),
            insert(code.definition(_CODE, "append_whole"), before="load_seen"),
            insert(code.definition(_CODE, "_begins"), before="load_seen"),
            insert(code.definition(_CODE, "_torn_lines"), before="load_seen"),
            insert(code.definition(_CODE, "drop_torn_rows"), before="load_seen"),
            insert(code.definition(_CODE, "prepare_outfile"), before="load_seen"),
            statement(
                "_worker",
                Match("for", "samples"),
                code.inside(_CODE, "collect"),
                where="before",
            ),
            statement(
                "_worker",
                Match("call", "out_fh.write"),
                code.inside(_CODE, "one_line"),
                where="instead",
            ),
            statement(
                "_worker",
                Match("call", "out_fh.flush"),
                code.inside(_CODE, "write_them"),
                where="instead",
            ),
            statement(
                "_run",
                Match("assign", "seen_ids"),
                "prepare_outfile(outfile, resume)",
                where="before",
            ),
        )
    },
    tests={"tests/unit/scripts/test_regenerate_torn.py": "test_torn.py"},
    differs="the overlay also fsyncs, locks the file, keeps one of doubled conversations, and "
    "resumes without being told to",
)

_LIMIT = Step(
    slug="request-timeout",
    subject="feat(regenerate): limit the time of one request",
    problem="""
        Requests have no read timeout, so a server that accepts connections and never answers (a
        deadlocked scheduler, a lost network path) holds the run for ever, without a word in the
        log.
        """,
    fix="""
        `--request-timeout` (seconds without a byte, default 3600) goes to the session. A request
        that runs into it is retried like any other network error.
        """,
    risk="""
        An answer that takes longer than an hour fails now: it is not streamed, so its first byte
        is its last. For longer generations, or longer queues, the option has to be raised.
        """,
    reproduction="reproduce_silent.py",
    files={
        _FILE: (
            parameter("_run", "request_timeout: float", after="max_retries"),
            expression(
                "_run",
                "aiohttp.ClientTimeout(total=None, sock_connect=90, sock_read=None)",
                "aiohttp.ClientTimeout(\n        total=None, sock_connect=90, "
                "sock_read=request_timeout\n    )",
            ),
            parameter(
                "regenerate_responses",
                code.inside(_CODE, "timeout_option"),
                after="max_retries",
            ),
            argument(
                "regenerate_responses",
                "_run",
                "request_timeout=request_timeout",
                after="max_retries",
            ),
        )
    },
    tests={"tests/unit/scripts/test_regenerate_silent.py": "test_silent.py"},
    differs="the overlay also goes to another endpoint, and waits for one that is down",
)

_EXIT = Step(
    slug="exit-code",
    subject="fix(regenerate): fail when conversations fail",
    problem="""
        A run whose server is gone records an error for every conversation and exits 0, so a script
        goes on to prepare and train with whatever is in the file.
        """,
    fix="""
        After the summary, exit with code 1 if more than `--max-error-rate` (default 0.1) of the
        conversations failed; those that earlier runs have answered count as conversations, so that
        a resume that asks only what always fails is judged as the whole. What was answered is kept;
        the same command with `--resume` goes on.
        """,
    risk="""
        Pipelines that tolerated more failures have to say so. Rows whose tool schema is broken
        count as failures, as they do in the summary.
        """,
    reproduction="reproduce_dead.py",
    files={
        _FILE: (
            insert(code.definition(_CODE, "_fail_if_too_many"), after="_log_summary"),
            parameter("_run", "max_error_rate: float", after="request_timeout"),
            statement(
                "_run",
                Match("call", "_log_summary"),
                "_fail_if_too_many(stats, num_earlier, max_error_rate)",
                where="after",
            ),
            statement(
                "_run",
                Match("assign", "rng"),
                "num_earlier = 0",
                where="after",
            ),
            statement(
                "_run",
                Match("if", "primary_id in seen_ids"),
                "if primary_id in seen_ids:\n    num_earlier += 1\n    continue",
                where="instead",
            ),
            parameter(
                "regenerate_responses",
                code.inside(_CODE, "error_option"),
                after="request_timeout",
            ),
            argument(
                "regenerate_responses",
                "_run",
                "max_error_rate=max_error_rate",
                after="request_timeout",
            ),
        )
    },
    tests={"tests/unit/scripts/test_regenerate_exit.py": "test_exit.py"},
    differs="the overlay's limit is 2 %, and it stops as soon as it is exceeded",
)

SPEC = Spec(name="durable_responses", steps=(_WHOLE, _LIMIT, _EXIT))
