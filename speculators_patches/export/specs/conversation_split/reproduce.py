"""Prepare and split 8 conversations of 5 rows each."""

import json
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from speculators.data_generation.preprocessing import load_and_preprocess_dataset
from speculators.train.data import ArrowDataset

folder = Path(tempfile.mkdtemp())
words = {str(number): number for number in range(64)} | {"<unk>": 64}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "model")
with (folder / "rows.jsonl").open("w") as file:
    for conversation in range(8):
        for turn in range(5):
            ids = [conversation, *range(10, 20 + turn)]
            row = {"id": f"c{conversation}_gen{turn}", "primary_id": f"c{conversation}"}
            row |= {"input_ids": ids, "loss_mask": [0] * 5 + [1] * (len(ids) - 5)}
            file.write(json.dumps(row) + "\n")
data, _ = load_and_preprocess_dataset(
    str(folder / "model"),
    [str(folder / "rows.jsonl")],
    seq_length=64,
    build_dataset_num_proc=1,
)
data.save_to_disk(str(folder / "data"))
sides = []
for split in ("train", "val"):
    side = ArrowDataset(64, folder / "data", train_ratio=0.8, split=split)
    sides.append({int(row["input_ids"][0]) for row in side.data})
shared = sides[0] & sides[1]
if shared:
    print(f"DEFECT: {len(shared)} of 8 conversations are on both sides of the split")
    sys.exit(1)
print(f"OK: {len(sides[0])} conversations to train on, {len(sides[1])} to validate on")
