"""Training asks several vLLM servers for hidden states."""

from speculators_patches.export import code
from speculators_patches.export.edits import expression, flag, imports, insert, statement, text
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "several_producers/code_data.py"
_INIT = "ArrowDataset.__init__"

SPEC = Spec(
    name="several_producers",
    steps=(
        Step(
            slug="several-vllm-endpoints",
            subject="feat(data): generate hidden states with several vLLM servers",
            problem="""
                Training asks one vLLM for hidden states. A verifier that is much slower than its
                drafter's training step bounds the run, and further GPUs with vLLM on them are of no
                use to it; and when that one server fails, training is without any. vLLM's own data
                parallelism serves several engines behind one address, but in one deployment that
                starts and fails together.
                """,
            fix="""
                `--vllm-endpoint` takes several addresses, separated by commas, that serve the same
                model. Each process of a training asks them in turn; the first one differs between
                workers and ranks. An address whose connection fails is left out for 30 seconds, and
                the attempts that each sample has go to the others. Which server answers does not
                change a sample's place in its batch.
                """,
            risk="""
                With one address nothing changes. All servers must write where the trainer reads,
                and must serve the same model under the same name, which is checked at the first
                request to each. Values are equal as far as vLLM computes the same ones in different
                batches. Each process asks for one sample at a time, so `--num-workers` bounds how
                many servers are busy at once. `generate-offline-data` still takes one address.
                """,
            reproduction="reproduce.py",
            files={
                "train/data.py": (
                    imports(
                        "from speculators.train.endpoints import EndpointRotation",
                    ),
                    statement(
                        _INIT,
                        Match("assign", "self.vllm_endpoint"),
                        code.inside(_CODE, "state"),
                        where="after",
                    ),
                    insert(
                        code.definition(_CODE, "_generate_hidden_states"),
                        after="ArrowDataset._generate_hidden_states_once",
                    ),
                    expression(
                        "ArrowDataset._get_raw_data",
                        "self._generate_hidden_states_once",
                        "self._generate_hidden_states",
                    ),
                ),
                "train/config/schema.py": (
                    text(
                        "GenerationArgs",
                        "vLLM endpoint used to generate hidden states on demand. Only ",
                        "vLLM endpoint used to generate hidden states on demand, "
                        'or "\n        "several of one model, separated by commas. Only ',
                    ),
                ),
            },
            new_files={"train/endpoints.py": "code_endpoints.py"},
            beside={
                "docs/cli/train.md": (
                    flag(
                        "--vllm-endpoint",
                        "Several addresses of one model, separated by commas, are asked in turn.",
                    ),
                )
            },
            tests={
                "tests/unit/train/test_several_endpoints.py": "test_several_endpoints.py",
                "tests/unit/train/test_endpoint_rotation.py": "test_endpoint_rotation.py",
            },
            differs="the overlay gives each sample to the server that has the least to do over all "
            "processes, and probes those that are out instead of trying them with a sample",
        ),
    ),
)
