"""Settings: precedence, types, and one clear sentence for what cannot be used."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.config import ADDITIONS, PRESETS, ConfigError, Recipe, resolve, split_preset
from recipes.presets import added
from recipes.server_specs import extraction_server

PUBLISHED = {
    "body": "coolthor/Huihui-gemma-4-26B-A4B-it-abliterated-FP8-Dynamic",
    "draft_start": "RedHatAI/gemma-4-26B-A4B-it-speculator.eagle3",
    "prompts": "magpie",
    "samples": 50_000,
    "seq_len": 4096,
    "epochs": 1,
    "scheduler": "cosine",
    "ttt_steps": 3,
    "train_vllm_share": 0.5,
    "hidden_states": "online",
    "num_speculative_tokens": 4,
    "kv_cache_dtype": "fp8",
    "serve_max_model_len": 65_536,
    "tool_parser": "gemma4",
    "prefix_caching": True,
    "optimizer": "adamw",
    "lr": 1e-4,
}


def test_defaults_are_the_published_run():
    recipe, origin = resolve("dgx-spark")
    assert {name: getattr(recipe, name) for name in PUBLISHED} == PUBLISHED
    assert origin == {}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_resolve_and_every_setting_is_explained(preset):
    recipe, _ = resolve(preset)
    assert all(doc for _, _, doc in recipe.describe())
    assert len(recipe.describe()) == len(dataclasses.fields(Recipe))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("addition", ADDITIONS)
def test_what_is_added_to_a_preset_goes_over_it_and_under_what_is_set(preset, addition, tmp_path):
    plain, _ = resolve(preset)
    recipe, origin = resolve(f"{preset}+{addition}")
    assert recipe == dataclasses.replace(plain, **added(addition, preset))
    assert {origin[name] for name in added(addition, preset)} == {f"preset {addition}"}
    assert split_preset(f"{preset}+{addition}") == (preset, [addition])
    name = "ttt_steps"
    assert resolve(f"{preset}+{addition}", None, [f"{name}=7"])[0].ttt_steps == 7
    saved, origin = resolve(f"{preset}+ttt4", None, [], plain.to_json(), {})
    assert (saved.ttt_steps, origin["ttt_steps"]) == (4, "preset ttt4")


@pytest.mark.parametrize(
    ("preset", "says"), [("h200", "no preset"), ("h100+ttt9", "ttt4"), ("h100+", "''")]
)
def test_a_preset_that_is_not_there_is_named(preset, says):
    with pytest.raises(ConfigError, match=says):
        resolve(preset)


def test_set_beats_file_beats_preset(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("lr = 0.5\nepochs = 7\n")
    recipe, origin = resolve("miniature", file, ["lr=0.25"])
    assert (recipe.lr, recipe.epochs, recipe.seq_len) == (0.25, 7, 512)
    assert origin["lr"] == "--set"
    assert origin["epochs"] == str(file)
    assert origin["seq_len"] == "preset miniature"


def test_a_run_folders_own_config_is_accepted_as_file(tmp_path):
    recipe, _ = resolve("miniature", None, ["epochs=9"])
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps({"preset": "miniature", "settings": recipe.to_json()}))
    assert resolve("dgx-spark", saved)[0] == recipe


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("nonsense=1", "no setting 'nonsense'"),
        ("epochs", "key=value"),
        ("epochs=two", "epochs='two'"),
        ("epochs=0", "at least 1"),
        ("scheduler=quick", "linear, cosine, none"),
        ("train_vllm_share=1.5", "between 0 and 1"),
        ("train_share=1", "between 0 and 1"),
        ("prefix_caching=maybe", "neither true nor false"),
        ("regenerate_sampling={", "JSON object"),
        ("lr=-1", "positive"),
        ("bench_n=", "bench_n"),
    ],
)
def test_bad_values_are_named(assignment, part):
    with pytest.raises(ConfigError, match=r"\w") as caught:
        resolve("dgx-spark", None, [assignment])
    message = str(caught.value)
    assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("content", ["lr = ", "= 3", "[[["])
def test_a_broken_file_is_named(tmp_path, content):
    file = tmp_path / "broken.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        resolve("miniature", file)
    with pytest.raises(ConfigError, match="Cannot read"):
        resolve("miniature", tmp_path / "absent.toml")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(1, 99),
            "lr": st.floats(1e-8, 1.0),
            "bench_n": st.lists(st.integers(0, 9), min_size=1).map(tuple),
            "num_workers": st.none() | st.integers(0, 8),
            "prefix_caching": st.booleans(),
            "body": st.text(st.characters(codec="ascii", exclude_categories=["C"])).map(str.strip),
        },
    )
)
def test_settings_survive_the_command_line(values):
    """What `--set` is given as text comes back as the same value of the same type."""
    texts = [
        f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in values.items()
    ]
    recipe, _ = resolve("h100", None, texts)
    for name, value in values.items():
        assert getattr(recipe, name) == value
        assert type(getattr(recipe, name)) is type(value)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("seq_len=4096;train_max_model_len=4096", "must be above seq_len"),
        ("draft_start=", "draft_vocab_size must be set"),
        ("regenerate_max_tokens=16384", "must be below bench_max_model_len"),
        ("target_layers=99", "must name layers from 0 to 29"),
        ("target_layers=", "must name layers"),
        ("lr=nan", "must be a finite number"),
        ("regenerate_error_share=inf", "must be a finite number"),
        ("num_speculative_tokens=0", "must be at least 1"),
        ("bench_temperatures=", "must list temperatures"),
        ("prompts=/nope.jsonl", "does not exist"),
        ("serve_port=99999", "is not a port"),
        ("checkpoint_keep=0", "must be at least 1"),
        ("log_every=0", "log_every=0 must be at least 1"),
        ("x=1", "there is no setting 'x'"),
        ("sample=1", "Did you mean samples"),
    ],
)
def test_what_would_fail_hours_later_is_refused(assignment: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        resolve("dgx-spark", None, assignment.split(";"))


def test_longer_rows_get_a_longer_context() -> None:
    recipe, _ = resolve("h100", None, ["seq_len=8192"])
    spec = extraction_server(recipe, Path("/states"))
    assert spec.max_model_len == 8193
