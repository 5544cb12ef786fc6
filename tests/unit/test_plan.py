"""`plan` and the command lines: what would run, for which machine, without starting anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from recipes import plan, plan_costs, stages, upstream
from recipes.config import ConfigError, resolve
from recipes.kinds import KINDS, served
from recipes.process import StageError
from recipes.run_folder import RunFolder
from recipes.server_specs import extraction_server, production_server
from recipes.vllm_server import Installed

ROOT = Path(__file__).parents[2]


def cli(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recipes.gemma4_abliterated", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )


def after(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_the_training_command_is_the_published_run(tmp_path):
    recipe, _ = resolve("dgx-spark")
    argv = upstream.train(
        recipe, data=tmp_path, output=tmp_path, logs=tmp_path, endpoint="http://e", accelerator=True
    )
    assert argv[1:6] == ["-m", "speculators_patches", "run", "--module", "speculators.train"]
    expected = {
        "--total-seq-len": "4096",
        "--epochs": "1",
        "--scheduler-type": "cosine",
        "--ttt-steps": "3",
        "--on-missing": "generate",
        "--optimizer": "adamw",
        "--from-pretrained": "RedHatAI/gemma-4-26B-A4B-it-speculator.eagle3",
    }
    assert {flag: after(argv, flag) for flag in expected} == expected


def test_a_started_drafter_keeps_its_own_vocabulary(tmp_path):
    """--draft-vocab-size beside --from-pretrained lays a new mapping over the old head's rows."""
    recipe, _ = resolve("dgx-spark", None, ["draft_vocab_size=32000"])
    paths = {"data": tmp_path, "output": tmp_path, "logs": tmp_path, "endpoint": None}
    assert "--draft-vocab-size" not in upstream.train(recipe, **paths, accelerator=True)
    fresh, _ = resolve("dgx-spark", None, ["draft_vocab_size=32000", "draft_start="])
    argv = upstream.train(fresh, **paths, accelerator=True)
    assert after(argv, "--draft-vocab-size") == "32000"
    assert "--from-pretrained" not in argv


def test_without_an_accelerator_the_loss_and_attention_are_the_cpu_ones(tmp_path):
    recipe, _ = resolve("miniature")
    argv = upstream.train(
        recipe, data=tmp_path, output=tmp_path, logs=tmp_path, endpoint=None, accelerator=False
    )
    assert after(argv, "--loss-implementation") == "eager"
    assert after(argv, "--draft-attn-impl") == "sdpa"


@pytest.mark.parametrize(
    ("setting", "endpoints"),
    [
        ("producers=2", "http://127.0.0.1:PORT/v1,http://127.0.0.1:PORT/v1"),
        ("train_endpoint=http://a:1,http://b:2", "http://a:1/v1,http://b:2/v1"),
    ],
)
def test_extraction_into_files_is_shared_by_all_producers(tmp_path, setting, endpoints):
    recipe, _ = resolve("h100", None, ["hidden_states=offline", setting])
    *servers, (_, extract), _ = plan.make_plan(recipe, RunFolder(tmp_path), "h100")[2].commands
    assert [kind in ("server", "your server") for kind, _ in servers] == [True, True]
    assert after(extract, "--endpoint") == endpoints
    assert after(extract, "--concurrency") == "16"


def test_deterministic_kernels_are_asked_for_by_a_setting_that_the_plan_names(tmp_path):
    paths = {"data": tmp_path, "output": tmp_path, "logs": tmp_path, "endpoint": None}
    plain, _ = resolve("h100")
    asked, _ = resolve("h100", None, ["deterministic=true"])
    assert "--deterministic-cuda" not in upstream.train(plain, **paths, accelerator=True)
    assert "--deterministic-cuda" in upstream.train(asked, **paths, accelerator=True)
    # Not tmp_path: it holds this test's name.
    said = {r.deterministic: "\n".join(plan.notes(r, Path("run"), "h100")) for r in (plain, asked)}
    assert "--set deterministic=true" in said[False]
    assert "deterministic=true" not in said[True]
    for preset in ("h100", "dgx-spark"):
        costs = {r.deterministic: "\n".join(plan_costs.train(r, preset)) for r in (plain, asked)}
        assert "the step alone takes 1.03 times as long, and the trainer's took 1.10" in costs[True]
        assert "deterministic=true" not in costs[False]
        assert "with ranges that overlap" in costs[True]
    with pytest.raises(ConfigError, match="picks its tile by timing in any mode"):
        resolve("h100", None, ["deterministic=true", "loss_implementation=fused"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "time: about 26 min to 30 min (28 to 32 conversations/s of 934 tokens: extraction "
             "from Gemma 4 26B-A4B's shape in FP8 for 12 workers, and the training step, which "),
        ([], "time: by itself it would be about 6 min of training steps (0.038 s for 4096 tokens: "
             "upstream's trainer on an H200, 0.043 with another host, ttt_steps 3)"),
        (["num_workers=12"], "time: about 26 min to 30 min"),
        (["body=mine", "train_vllm_share=0.7"], "time: about 26 min to 30 min"),
        (["samples=500000"], "time: about 4.3 h to 4.9 h (28 to 32"),
        (["samples=100"], "time: about 1 min to 1 min (28 to 32"),
        (["ttt_steps=5"], "about 10 min of training steps (0.060 s for 4096 tokens: upstream's "
                          "trainer on an H200, 0.043 with another host, ttt_steps 3, and for 5 "
                          "what an H100's bare step grows by), and what extraction adds, which"),
        *(
            ([other], "and what extraction adds, which is not measured")
            for other in (
                "num_workers=2", "seq_len=8192", "train_vllm_share=0.2", "target_layers=2,9,15,27",
                "hidden_states_dtype=float32", "loss_implementation=fused", "ttt_steps=4",
                "vllm_extra=--enforce-eager", "train_extra=--num-workers,2",
            )
        ),
        (["host_gpus=2"], "and what extraction adds, which is not measured"),
        (["hosts=a,b"], "and what extraction adds, which is not measured"),
        (["train_endpoint=http://127.0.0.1:1/v1"], "what extraction adds, which is not measured"),
        (["trainers=2"], "and what extraction adds, which is not measured"),
        (["producers=2"], "and what extraction adds, which is not measured"),
        (["hidden_states=offline"], "and what extraction adds, which is not measured"),
    ],
)  # fmt: skip
def test_the_time_of_training_says_where_it_is_from(asked: list[str], said: str) -> None:
    recipe, _ = resolve("h100", None, asked)
    assert said in "\n".join(plan_costs.train(recipe, "h100"))


@pytest.mark.parametrize("accelerator", [True, False])
def test_the_loss_without_tiles_chosen_by_timing_is_taken_unless_asked(accelerator):
    recipe, _ = resolve("h100")
    assert upstream.loss_implementation(recipe, accelerator)[0] == "eager"
    asked, _ = resolve("h100", None, ["loss_implementation=fused"])
    assert upstream.loss_implementation(asked, accelerator) == ("fused", "as set")


def test_old_upstreams_are_told_what_to_install(monkeypatch):
    monkeypatch.setattr(upstream, "installed", lambda name: upstream.Version("0.7.0.2"))
    with pytest.raises(
        upstream.UpstreamError, match=r"needs 0\.8 or newer.*speculators_patches run"
    ):
        upstream.require_entrypoints()


def test_the_production_flags_are_the_published_ones(tmp_path):
    recipe, _ = resolve("dgx-spark")
    spec = production_server(recipe, tmp_path)
    assert spec.speculative_config == {
        "method": "eagle3",
        "model": str(tmp_path),
        "num_speculative_tokens": 4,
    }
    assert (spec.port, spec.max_model_len, spec.gpu_memory_utilization) == (8000, 65_536, 0.65)
    for flag in ("--enable-auto-tool-choice", "--enable-prefix-caching"):
        assert flag in spec.extra_args
    assert after(list(spec.extra_args), "--kv-cache-dtype") == "fp8"
    assert after(list(spec.extra_args), "--tool-call-parser") == "gemma4"


def test_the_bodys_last_layer_is_extracted_too(tmp_path):
    recipe, _ = resolve("dgx-spark")
    assert extraction_server(recipe, tmp_path).extraction_layers == (2, 15, 27, 30)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 7}}))
    local, _ = resolve("dgx-spark", None, [f"body={tmp_path}"])
    assert extraction_server(local, tmp_path).extraction_layers == (2, 15, 27, 7)


def test_what_probabilistic_drafts_keep_is_told_where_they_may_be_used() -> None:
    told = "\n".join(plan_costs.serve(resolve("h100", None, ["draft_sample_method=auto"])[0]))
    assert "2.1 GB for the default of 1024" in told  # 4 x 262144 x 2 bytes x 1024
    assert "4 MiB of float32" in told
    for setting in ("draft_sample_method=greedy", "serve_temperature=0"):
        assert not list(plan_costs.serve(resolve("h100", None, [setting])[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_trained_and_served_as_such(kind: str, tmp_path: Path) -> None:
    preset = "h100" if kind == "eagle3" else f"h100+{kind}"
    recipe, _ = resolve(preset)
    stages = {s.name: s for s in plan.make_plan(recipe, RunFolder(tmp_path), "h100")}
    trained = " ".join(word for _, argv in stages["train"].commands for word in argv)
    assert f"--speculator-type {kind}" in trained
    assert ("--ttt-steps" in trained) == (kind == "eagle3")
    said = "\n".join(stages["train"].costs)
    assert ("are not measured" in said) == (kind != "eagle3")
    config = production_server(recipe, Path("D")).speculative_config or {}
    assert served(recipe.drafter_kind).items() <= config.items()
    assert config["model"] == "D"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["drafter_kind=peagle"], "is an EAGLE-3 drafter"),
        (["drafter_kind=dflash", "draft_start=", "draft_vocab_size=32000", "best_by=greedy-tokens"],
         "eagle3 only"),
        (["drafter_kind=mtp"], "not one of eagle3"),
    ],
)  # fmt: skip
def test_a_kind_that_cannot_be_is_refused(settings: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve("h100", None, settings)


@pytest.mark.parametrize("preset", ["dgx-spark", "h100", "miniature"])
def test_plan_prints_every_stage_and_writes_nothing(tmp_path, preset):
    done = cli("plan", "--preset", preset, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for stage in ("regenerate", "prepare", "train", "calibrate", "bench", "serve"):
        assert stage in lines
    assert f"speculators: {upstream.installed('speculators')}" in lines
    assert list(tmp_path.iterdir()) == []


def test_the_published_times_come_back_from_the_plan(tmp_path):
    recipe, _ = resolve("dgx-spark")
    stages = {s.name: s for s in plan.make_plan(recipe, RunFolder(tmp_path), "dgx-spark")}
    assert any("about 24 h" in cost for cost in stages["regenerate"].costs)
    # 0.9 of the rows are trained on: 10 of the 11 hours.
    assert any("about 10 h" in cost for cost in stages["train"].costs)


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["train", "--preset", "huge"], 2, "no preset 'huge'"),
        (["plan", "--set", "lr=fast"], 2, "lr='fast'"),
        (["prepare", "--preset", "h100"], 1, "run `regenerate`"),
        (["serve", "--preset", "miniature"], 1, "no miniature drafter yet"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, arguments, code, part):
    done = cli(*arguments, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == code
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_run_folder_remembers_its_preset_and_settings(tmp_path):
    folder = str(tmp_path / "run")
    cli("prepare", "--preset", "h100", "--set", "lr=0.125", "--run-dir", folder)
    again = cli("settings", "--run-dir", folder)
    assert again.stdout.startswith("# preset h100")
    assert "lr = 0.125" in again.stdout
    assert "epochs = 3" in cli("settings", "--run-dir", folder, "--set", "epochs=3").stdout


def test_a_kind_that_this_vllm_cannot_serve_is_refused_before_it_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DSpark needs vLLM's V2 model runner, and that a GPU."""
    for cpu in (True, False):
        vllm = Installed(Version("0.32.0"), cpu=cpu)
        monkeypatch.setattr(stages, "installed", lambda v=vllm: v)
        for kind in KINDS:
            recipe = resolve("h100" if kind == "eagle3" else f"h100+{kind}")[0]
            if kind == "dspark" and cpu:
                with pytest.raises(StageError, match="V2 model runner"):
                    stages._check_start(recipe)
            else:
                stages._check_start(recipe)
