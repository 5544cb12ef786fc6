"""vLLM's hidden-states connector works where there is no CUDA device."""

from packaging.specifiers import SpecifierSet

from speculators_patches.export import code
from speculators_patches.export.edits import expression, insert, statement, wrap
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "vllm_cpu_hidden_states/code_connector.py"
_CLASS = "ExampleHiddenStatesConnector"
_SUBMIT = f"{_CLASS}._submit_async_write"

SPEC = Spec(
    name="vllm_cpu_hidden_states",
    package="vllm",
    needed=SpecifierSet(">=0.32,<0.33"),
    steps=(
        Step(
            slug="cpu-hidden-states",
            subject="[CPU][KV Connector] Support ExampleHiddenStatesConnector on CPU",
            problem="""
                `extract_hidden_states` runs on the CPU backend, but the connector that writes the
                hidden states to files does not: it makes a CUDA stream, records CUDA events and
                asks for pinned memory, none of which a CPU build has. The first request that
                finishes ends the engine.
                """,
            fix="""
                Where the KV cache is in host memory there is nothing to copy from a device: index
                it, which makes a copy, and hand the tensors to the writer thread with a stand-in
                for the event that is complete from the start. The CUDA path is moved into its own
                branch and does what it did.
                """,
            risk="""
                None for devices with CUDA streams; the branch is taken by the cache's device. On a
                CPU the gather runs in the worker's thread and blocks it for one memory copy of the
                request's states.
                """,
            reproduction="reproduce.py",
            files={
                "distributed/kv_transfer/kv_connector/v1/example_hidden_states_connector.py": (
                    insert(code.definition(_CODE, "_CompletedCopy"), before=_CLASS),
                    expression(
                        f"{_CLASS}.__init__",
                        "dict[str, torch.cuda.Event]",
                        "dict[str, torch.cuda.Event | _CompletedCopy]",
                    ),
                    expression(
                        f"{_CLASS}._write_tensors", "torch.cuda.Event", "{} | _CompletedCopy"
                    ),
                    statement(
                        _SUBMIT,
                        Match("assign", "copy_stream"),
                        code.inside(_CODE, "copy_done_is_either"),
                        where="before",
                    ),
                    wrap(
                        _SUBMIT,
                        Match("assign", "copy_stream"),
                        Match("call", "copy_done.record"),
                        code.inside(_CODE, "in_host_memory").removesuffix("\n    ..."),
                    ),
                )
            },
            tests={
                "tests/v1/kv_connector/unit/test_cpu_hidden_states.py": "test_cpu_hidden_states.py"
            },
            differs="the recipe loads a subclass; it also publishes each file by renaming it",
        ),
    ),
)
