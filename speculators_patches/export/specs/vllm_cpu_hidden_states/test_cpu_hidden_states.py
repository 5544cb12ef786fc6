# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""ExampleHiddenStatesConnector with a KV cache in host memory."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vllm.distributed.kv_transfer.kv_connector.v1 import (
    example_hidden_states_connector as module,
)

BLOCKS, LAYERS, BLOCK_SIZE, HIDDEN = 4, 3, 4, 8


def make_connector():
    """The worker's half of a connector, without an engine around it."""
    connector = object.__new__(module.ExampleHiddenStatesConnector)
    connector._is_tp_rank_zero = True
    connector._block_size = BLOCK_SIZE
    generator = torch.Generator().manual_seed(0)
    connector._kv_cache = torch.randn(
        BLOCKS, LAYERS, BLOCK_SIZE, HIDDEN, generator=generator
    )
    connector._copy_stream = None
    connector._executor = ThreadPoolExecutor(1)
    connector._lock_fds = {}
    connector._req_futures = {}
    connector._req_copy_events = {}
    connector._accumulated_finished_req_ids = set()
    connector._connector_metadata = None
    connector.use_lock = True
    return connector


def save(connector, path, blocks, tokens, req_id="r"):
    pending = module.PendingSave(
        req_id=req_id,
        filename=str(path),
        token_ids=torch.arange(tokens),
        block_ids=blocks,
    )
    connector._submit_async_write(pending)
    return module.load_hidden_states(str(path))


@pytest.mark.parametrize("tokens", [1, 4, 6, 8])
def test_the_request_s_rows_are_written(tmp_path, tokens):
    connector = make_connector()

    found = save(connector, tmp_path / "r.safetensors", blocks=[2, 0], tokens=tokens)

    # [blocks, layers, slots, hidden] -> [tokens, layers, hidden]
    cache = connector._kv_cache
    rows = torch.cat([cache[2].transpose(0, 1), cache[0].transpose(0, 1)])
    assert torch.equal(found["hidden_states"], rows[:tokens])
    assert torch.equal(found["token_ids"], torch.arange(tokens))


def test_blocks_may_be_reused_at_once(tmp_path):
    connector = make_connector()
    before = connector._kv_cache.clone()
    pending = module.PendingSave(
        "r", str(tmp_path / "r.safetensors"), torch.arange(4), [1]
    )

    connector._submit_async_write(pending)
    connector._kv_cache.zero_()

    found = module.load_hidden_states(pending.filename)
    assert torch.equal(found["hidden_states"], before[1].transpose(0, 1))


def test_the_request_is_reported_as_finished(tmp_path):
    connector = make_connector()
    save(connector, tmp_path / "r.safetensors", blocks=[0], tokens=2)

    assert connector.get_finished({"r"}) == ({"r"}, None)
    assert connector.get_finished(set()) == (None, None)
