"""Whose fault is it that a request for hidden states failed?"""

from __future__ import annotations

from typing import Literal

Blame = Literal["away", "struck", "refused", "other"]


def blame(error: BaseException, reached: bool = True) -> tuple[Blame, str]:
    """Whose fault a failed round trip is, and a clause that says what happened.

    away: the server could not be asked at all. struck: it was, and failed. refused: it does not
    like the sample. other: none of these.

    Args:
        error: of upstream's client or of the reading of the file.
        reached: False: not even the name of the server's model could be had.
    """
    import httpx
    import openai
    from safetensors import SafetensorError

    from speculators_patches.store_wait import StoreAway

    why = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200].rstrip('. ')}"
    if not reached or isinstance(error, StoreAway):  # the second: what was made is lost
        return "away", why
    if isinstance(error, openai.APIStatusError):
        if error.status_code in (408, 425, 429):
            return "away", why
        return ("struck" if error.status_code >= 500 else "refused"), why
    if isinstance(error, openai.APIConnectionError):
        unreached = isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)
        return ("away" if unreached else "struck"), why
    if type(error).__name__ == "InvalidResponseError" and "kv_transfer_params" in str(error):
        return "struck", "the answer names no hidden states"
    missing = str(error).startswith("Failed to load hidden states")
    if missing or isinstance(error, SafetensorError | OSError):
        return "struck", f"the file that the server promised cannot be read ({why})"
    return "other", why
