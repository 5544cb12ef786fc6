"""A stage is done only when it finished from the same inputs; other work is set aside, not lost."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.config import Recipe
from recipes.display import Display
from recipes.prepare_stage import prepared
from recipes.process import StageError
from recipes.run_folder import RunFolder, digest, file_digest, write_atomically
from recipes.servers import ServerPool
from recipes.stage import Context

plain = st.dictionaries(
    st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=4
)


def test_unfinished_work_from_the_same_inputs_is_continued(tmp_path):
    run = RunFolder(tmp_path)
    folder = run.begin("train", {"lr": 1})
    (folder / "half.bin").write_text("half")
    assert not run.is_done("train", {"lr": 1})
    assert (run.begin("train", {"lr": 1}) / "half.bin").read_text() == "half"
    run.finish("train", {"lr": 1}, 1.0)
    assert run.is_done("train", {"lr": 1})


def test_work_from_other_inputs_is_set_aside_and_kept(tmp_path):
    run = RunFolder(tmp_path)
    for lr in (1, 2, 3):
        folder = run.begin("train", {"lr": lr})
        assert not (folder / "result").exists()
        (folder / "result").write_text(str(lr))
        run.finish("train", {"lr": lr}, 1.0)
        assert not run.is_done("train", {"lr": lr + 1})
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == ["train", "train.superseded-1", "train.superseded-2"]
    assert [(tmp_path / name / "result").read_text() for name in kept] == ["3", "1", "2"]


def test_a_torn_manifest_means_not_done(tmp_path):
    run = RunFolder(tmp_path)
    run.begin("train", {"lr": 1})
    run.finish("train", {"lr": 1}, 1.0)
    manifest = run.stage_dir("train") / "manifest.json"
    manifest.write_text(manifest.read_text()[:-9])
    assert not run.is_done("train", {"lr": 1})


@given(plain, plain)
def test_digest_separates_different_inputs_only(a, b):
    assert (digest(a) == digest(b)) == (
        json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    )


def test_file_digest_sees_names_and_bytes(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "a").write_bytes(b"x")
    (tmp_path / "two" / "b").write_bytes(b"x")
    (tmp_path / "three" / "a").write_bytes(b"x")
    digests = {name: file_digest(tmp_path / name) for name in ("one", "two", "three")}
    assert digests["one"] != digests["two"]
    assert digests["one"] == digests["three"]
    (tmp_path / "three" / "a").write_bytes(b"y")
    assert file_digest(tmp_path / "three") != digests["one"]


def test_write_atomically_leaves_no_other_file(tmp_path):
    write_atomically(tmp_path / "deep" / "f.json", "1")
    write_atomically(tmp_path / "deep" / "f.json", "2")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["f.json"]
    assert (tmp_path / "deep" / "f.json").read_text() == "2"


def test_a_data_set_that_somebody_changed_is_not_trained_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    data = run.begin("prepare", {}) / "dataset"
    data.mkdir()
    (data / "rows.arrow").write_bytes(b"rows")
    run.finish("prepare", {}, 0.0, output=file_digest(data))
    source = run.manifest("prepare")
    display = Display()
    ctx = Context(Recipe(), run, display, ServerPool(tmp_path / "logs", display.note))
    assert prepared(ctx, source) == data
    (data / "d2t-32.npy").write_bytes(b"what upstream's trainer leaves there")
    assert prepared(ctx, source) == data
    (data / "rows.arrow").write_bytes(b"rowz")
    with pytest.raises(StageError, match="is not the data set that prepare finished"):
        prepared(ctx, source)
