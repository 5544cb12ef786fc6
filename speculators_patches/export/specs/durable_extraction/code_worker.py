"""For `speculators/cli/generate_offline_data.py`."""

import asyncio
from pathlib import Path

from safetensors.torch import load_file

from speculators.data_generation.offline import check_hidden_states


async def check(validate_outputs, hidden_states_path, item):
    if validate_outputs:
        # Before the move: what has its final name counts as done.
        def _load_and_check(
            path=hidden_states_path,
            tokens=item["input_ids"],
        ):
            try:
                check_hidden_states(load_file(path), tokens)
            except Exception:
                Path(path).unlink(missing_ok=True)
                raise

        await asyncio.to_thread(_load_and_check)
