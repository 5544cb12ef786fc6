"""For `speculators/train/cli.py`."""

import logging

from speculators.config import SpeculatorModelConfig, VerifierConfig

logger = logging.getLogger(__name__)


def _set_verifier(config: SpeculatorModelConfig, name_or_path: str) -> None:
    """Name the verifier that is served in a trained checkpoint's config.

    Its final norm and head make the targets, so they have to be those of the model
    that the hidden states come from.
    """
    speculators_config = getattr(config, "speculators_config", None)
    if speculators_config is None or not name_or_path:
        return
    saved = speculators_config.verifier.name_or_path
    if saved == name_or_path:
        return
    if saved:
        logger.warning(
            "The checkpoint was trained for the verifier '%s'; targets now come from "
            "'%s' (--verifier-name-or-path).",
            saved,
            name_or_path,
        )
    speculators_config.verifier = VerifierConfig.from_pretrained(name_or_path)
