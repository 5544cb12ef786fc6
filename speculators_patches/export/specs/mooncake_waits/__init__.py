"""Hidden states that come through Mooncake are waited for while its master is away."""

from speculators_patches.export import code
from speculators_patches.export.edits import expression, imports, insert, noqa, statement, wrap
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "mooncake_waits/code_store.py"
_CLASS = "MooncakeHiddenStatesStore"
_WAIT = f"{_CLASS}._wait_for"

SPEC = Spec(
    name="mooncake_waits",
    package="hs_connectors",
    related="#836 (merged, 2026-07-31: the Mooncake backend), #967 (merged, 2026-08-18: manifests)",
    steps=(
        Step(
            slug="wait-for-mooncake-master",
            subject="fix(mooncake): wait for a master that is away",
            problem="""
                Readers have 120 s for a sample to appear, but give it up at once when Mooncake's
                master does not answer: `is_exist` returns a negative status, which raises. A master
                that restarts within seconds so uses up all attempts of the samples that are under
                way, one per worker, and training goes on without them. After a restart the master
                has forgotten what it had, and readers wait the rest of the 120 s for it.

                A client that starts before the master is in C++ for 90 s, with Python's lock held,
                so that Ctrl+C has no effect meanwhile.
                """,
            fix="""
                A negative status is an absence for as long as the sample may take. Once the master
                answers again, a sample that is not there within 12 s is lost, and the reader says
                so at once, so that the next attempt asks for it anew. Before `setup` the client
                waits for the master to take a connection, 90 s as before, but in Python.
                """,
            risk="""
                A master that is gone for good costs a sample 120 s an attempt instead of none, so
                the circuit breaker trips later. The new error is a `RuntimeError`, as before.
                An address with a scheme (`etcd://`, high availability) is not probed.
                """,
            reproduction="reproduce.py",
            files={
                "mooncake_store.py": (
                    imports("import socket"),
                    statement(
                        "",
                        Match("assign", "_MIN_POLL_INTERVAL"),
                        code.inside(_CODE, "constants"),
                        where="after",
                    ),
                    insert(
                        code.definition(_CODE, "MooncakeUnavailableError"),
                        after="MooncakeIntegrityError",
                    ),
                    insert(code.definition(_CODE, "_wait_for_master"), before=_CLASS),
                    statement(
                        f"{_CLASS}.setup",
                        Match("assign", "store"),
                        "_wait_for_master(self.config.master_server_address)",
                        where="before",
                    ),
                    noqa(_WAIT, "C901"),
                    expression(_WAIT, "RuntimeError", "MooncakeUnavailableError"),
                    statement(
                        _WAIT, Match("assign", "deadline"), "was_away = False", where="after"
                    ),
                    wrap(
                        _WAIT,
                        Match("if", "_check_key(error_handle)"),
                        Match("if", "_check_key(handle)"),
                        "try:",
                        footer=code.after_try(_CODE, "after_a_look"),
                    ),
                )
            },
            tests={
                "tests/unit/hs_connectors/test_mooncake_away.py": "test_mooncake_away.py",
            },
            differs="the overlay waits 15 minutes, asks again for what was lost, and calls into "
            "Mooncake from a thread of its own; its connector also keeps what was not read",
        ),
    ),
)
