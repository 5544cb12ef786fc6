"""A drafter that is fine-tuned learns from the verifier named on the command line."""

from speculators_patches.export import code
from speculators_patches.export.edits import imports, insert, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

SPEC = Spec(
    name="named_verifier",
    steps=(
        Step(
            slug="finetune-named-verifier",
            subject="fix(train): make --from-pretrained follow --verifier-name-or-path",
            problem="""
                Fine-tuning a drafter for a derivative of its verifier (an instruction tune, a
                merge, an edited model) takes the hidden states from the verifier that is served and
                named by `--verifier-name-or-path`, but the targets from the head and the final norm
                of the verifier in the drafter's config, which is the one it was first trained for.
                Hidden states and targets then belong to two models, without a message, and the
                saved config goes on naming the first one, whose files are needed as well.
                """,
            fix="""
                Where `build_draft_model` reads the config of a trained checkpoint, it puts the
                named verifier in, with a warning if that is another one. `from_pretrained` then
                loads its head and norm, and the checkpoints of the run name it. What the checkpoint
                itself holds stays: the drafter's own weights, embedding and head.
                """,
            risk="""
                A drafter whose config names a verifier by its hub id, fine-tuned with the path of a
                local copy, is saved with that path, as a fresh drafter is. A verifier of another
                hidden size is refused as before. A config-only directory keeps the verifier of its
                config (`test_build_from_config_only_preserves_existing_verifier_name` asks for
                that), and so does MTP, whose loading has no config to edit here.
                """,
            reproduction="reproduce.py",
            files={
                "train/cli.py": (
                    imports("from speculators.config import SpeculatorModelConfig, VerifierConfig"),
                    insert(
                        code.definition("named_verifier/code_cli.py", "_set_verifier"),
                        before="build_draft_model",
                    ),
                    statement(
                        "build_draft_model",
                        Match("assign", "config.transformer_layer_config._attn_implementation"),
                        "_set_verifier(config, args.verifier_name_or_path)",
                        where="after",
                    ),
                )
            },
            tests={"tests/unit/train/test_finetune_verifier.py": "test_finetune_verifier.py"},
            differs="the overlay loads the named verifier's head and norm after the other one's, "
            "and for config-only directories too",
        ),
    ),
)
