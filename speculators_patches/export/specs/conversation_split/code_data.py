"""For `speculators/train/data.py`."""


def _between_conversations(data: Any, split_idx: int) -> int:
    """Move *split_idx* to the nearest row at which a conversation begins."""
    if not 0 < split_idx < len(data):
        return split_idx
    if "conversation" not in data.column_names:
        logger.warning(
            "The data set does not say which conversation a row came from: training "
            "and validation may share conversations. Run prepare-data again."
        )
        return split_idx
    place = _nearest_cut(list(data.with_format(None)["conversation"]), split_idx)
    if place is None:
        raise ValueError(
            "The data set cannot be split between two conversations. It needs at least "
            "two, and the rows of each next to each other: run prepare-data again."
        )
    return place


def move_the_cut(self, split_idx):
    split_idx = _between_conversations(self.data, split_idx)
