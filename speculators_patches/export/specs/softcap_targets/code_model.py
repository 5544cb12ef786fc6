"""For `speculators/model.py`."""


def _final_softcap(config) -> float | None:
    """The final softcap of a verifier's config, its ``text_config`` included."""
    config = getattr(config, "text_config", None) or config
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is None:
        return None
    if isinstance(cap, bool) or not isinstance(cap, (int, float)) or not cap > 0:
        raise ValueError(
            f"The verifier's config has final_logit_softcapping={cap!r}, which is no "
            "cap: it must be a positive number or null."
        )
    return float(cap)


def _cap_logits(module, _inputs, logits: torch.Tensor) -> torch.Tensor:
    """Forward hook: logits as a verifier with a final softcap serves them."""
    cap = module.final_softcap
    return logits if cap is None else (logits / cap).tanh() * cap


def _cap_targets(self) -> None:
    """Make ``verifier_lm_head`` cap its logits if the verifier does."""
    speculators_config = getattr(
        getattr(self, "config", None), "speculators_config", None
    )
    verifier = getattr(speculators_config, "verifier", None)
    name = getattr(verifier, "name_or_path", None)
    head = getattr(self, "verifier_lm_head", None)
    if name is None or head is None:
        return
    from transformers import AutoConfig  # noqa: PLC0415

    if not hasattr(head, "final_softcap"):  # loaded again, it is not capped twice
        head.register_forward_hook(_cap_logits)
    head.final_softcap = _final_softcap(AutoConfig.from_pretrained(name))
