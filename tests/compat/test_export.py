"""Exports against real upstream: `git am` takes them, the tree stays as it is, and they do what
they say. The whole check of every patch is nightly; two small ones run always.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.vllm import mooncake
from speculators_patches.export import order, spec
from tests.compat import matrix

pytestmark = pytest.mark.matrix

ROOT = Path(__file__).resolve().parents[2]
SPECULATORS = [name for name, item in spec.table().items() if item.package == "speculators"]
CONNECTORS = [name for name, item in spec.table().items() if item.package == "hs_connectors"]
VLLM = [name for name, item in spec.table().items() if item.package == "vllm"]


def export(*words: str | Path, in_front: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), *([str(in_front)] if in_front else [])]
    return subprocess.run(
        [sys.executable, "-m", "speculators_patches", "export", *map(str, words)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=3000,
    )  # fmt: skip


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert done.stdout, done.stderr[-3000:]
    return {item["name"]: item for item in json.loads(done.stdout)}


def contents(folder: Path) -> str:
    """One digest over the names and bytes of a tree's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture
def src_layout(laid_out: Callable[[str], Path], tmp_path: Path) -> Path:
    """0.9.0 as an unpacked source of both packages, under git, clean."""
    root = tmp_path / "checkout"
    leave = shutil.ignore_patterns("__pycache__")
    for package, where in (("speculators", "src"), ("hs_connectors", "hs_connectors/src")):
        shutil.copytree(laid_out("0.9.0") / package, root / where / package, ignore=leave)
    (root / ".gitignore").write_text("__pycache__/\n")
    who = ["-c", "user.name=U", "-c", "user.email=u@localhost"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "upstream"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    return root


def test_every_patch_is_exported_and_git_am_takes_it(src_layout: Path, tmp_path: Path) -> None:
    before = contents(src_layout / "src")
    done = export("--all", "--tree", src_layout, "--out", tmp_path / "out", "--json")
    found = outcomes(done)
    assert done.returncode == 0, done.stderr
    assert set(found) == {*SPECULATORS, *CONNECTORS}
    assert found.pop("empty_sample_dtype")["reason"] == "upstreamed in 0.6.0 (#527)"
    assert {item["verdict"] for item in found.values()} == {"exported"}
    assert contents(src_layout / "src") == before
    for name, item in found.items():
        assert len(item["files"]) == 2 * len(spec.table()[name].steps)
        clone = tmp_path / f"clone-{name}"
        subprocess.run(["git", "clone", "-q", str(src_layout), str(clone)], check=True)
        patches = [tmp_path / "out" / file for file in item["files"] if file.endswith(".patch")]
        who = ["-c", "user.name=U", "-c", "user.email=u@localhost"]
        applied = subprocess.run(
            ["git", "-C", str(clone), *who, "am", "-q", *map(str, patches)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert applied.returncode == 0, applied.stderr
        for patch in patches:
            looks_like_a_pull_request(patch)
        shutil.rmtree(clone)


FLAGS = """\
# Flags

- **`--vllm-endpoint`** (str) One.

- **`--max-retries`** (int) Two.

- **`--t2d-path`** (str) Three.

- **`--ttt-step-loss-decay`** (float) Four.

- **`--checkpoint-freq`** (int) Five.
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("step_checkpoints", "+- **`--checkpoint-steps`**"),
        ("wait_for_producer", "+- **`--producer-wait`**"),
        ("expected_acceptance", "+- **`--acceptance-temperature`**"),
        ("unsayable_positions", "+- **`--mask-unsayable-positions`**"),
        ("several_producers", "+- **`--vllm-endpoint`** (str) One. Several addresses"),
    ],
)
def test_a_new_flag_goes_into_the_tree_s_documentation(
    name: str, words: str, src_layout: Path, tmp_path: Path
) -> None:
    """A release has none: there the text says that it is left to do."""

    def exported(out: str) -> tuple[str, str]:
        done = export(name, "--tree", src_layout, "--out", tmp_path / out)
        assert done.returncode == 0, done.stdout
        folder = tmp_path / out / name
        return tuple(
            "".join(file.read_text() for file in sorted(folder.glob(f"*{end}")))
            for end in (".patch", ".md")
        )  # type: ignore[return-value]

    patch, text = exported("without")
    assert "docs/cli/train.md" not in patch
    assert "- [ ] `docs/cli/train.md`, which speculators 0.9.0 as given here" in text
    file = src_layout / "docs/cli/train.md"
    file.parent.mkdir(parents=True)
    file.write_text(FLAGS)
    patch, text = exported("with")
    assert words in patch
    assert "docs/cli/train.md" not in text


@pytest.mark.nightly
def test_the_pull_requests_that_meet_are_the_ones_that_say_so(
    src_layout: Path, tmp_path: Path
) -> None:
    """Every two that change a common file, the later in alphabetical order on the earlier."""
    out = tmp_path / "out"
    assert export("--all", "--tree", src_layout, "--out", out).returncode == 0
    git = ["git", "-C", str(src_layout), "-c", "user.name=U", "-c", "user.email=u@localhost"]
    names = [name for name in SPECULATORS if (out / name).is_dir()]
    changed = {
        name: {file for step in spec.table()[name].steps for file in step.files} for name in names
    }

    def refused(name: str) -> str | None:
        """The slug of the first step that `git am` does not take."""
        steps = spec.table()[name].steps
        for step, patch in zip(steps, sorted((out / name).glob("*.patch")), strict=True):
            words = [*git, "am", "-q", "-3", str(patch)]
            if subprocess.run(words, capture_output=True, check=False).returncode:
                subprocess.run([*git, "am", "--abort"], check=True, capture_output=True)
                return step.slug
        return None

    base = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    found = set()
    for first, second in itertools.combinations(names, 2):
        if changed[first] & changed[second]:
            subprocess.run([*git, "reset", "-q", "--hard", base.stdout.strip()], check=True)
            assert refused(first) is None
            if (slug := refused(second)) is not None:
                found.add((first, slug))
    owner = {step.slug: name for name in names for step in spec.table()[name].steps}
    assert found == {(owner[first], second) for first, second in order.SAME_LINES}


def looks_like_a_pull_request(patch: Path) -> None:
    added = [line[1:] for line in patch.read_text().splitlines() if line.startswith("+")]
    assert not any("speculators_patches" in line for line in added)
    assert not any(line.strip() == "..." for line in added), "a placeholder was left"


def vllm_tree() -> Path:
    """vLLM as it is installed here."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    return Path(found.origin).parent


@pytest.mark.parametrize("name", VLLM)
def test_patches_of_vllm_are_exported_from_the_installed_package(name: str, tmp_path: Path) -> None:
    done = export(name, "--tree", vllm_tree(), "--out", tmp_path, "--json")
    item = outcomes(done)[name]
    assert item["verdict"] == "exported", item
    (patch,) = tmp_path.rglob("*.patch")
    looks_like_a_pull_request(patch)


def test_a_flat_source_gives_the_same_change(
    src_layout: Path, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    for folder, out in ((src_layout, "a"), (laid_out("0.9.0"), "b")):
        assert (
            export("strict_draft_vocab", "--tree", folder, "--out", tmp_path / out).returncode == 0
        )

    def change(out: str) -> list[str]:
        (patch,) = (tmp_path / out).rglob("*.patch")
        text = patch.read_text().replace("src/speculators/", "speculators/")
        return [line for line in text.splitlines() if line[:1] in "+-" and "/dev/null" not in line]

    assert change("a") == change("b")


@pytest.mark.parametrize(
    ("version", "name"), [("0.9.0", "interruptible_retries"), ("0.5.0", "empty_sample_dtype")]
)
def test_the_check_shows_the_defect_and_its_absence(
    version: str, name: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    tree = laid_out(version)
    done = export(name, "--check", "--tree", tree, "--out", tmp_path, "--json")
    (found,) = outcomes(done).values()
    assert found["verdict"] == "exported", found
    (check,) = found["checks"]
    assert check["before"]["words"].startswith("DEFECT: ")
    assert check["after"]["words"].startswith("OK: ")
    assert check["tests_before"]["failed"] > 0
    assert check["tests_after"]["failed"] == 0
    (text,) = tmp_path.rglob("*.md")
    for heading in ("Problem", "Reproduction", "Fix", "Tests", "Risk"):
        assert f"## {heading}\n" in text.read_text()
    assert check["before"]["words"] in text.read_text()


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name", [name for name in [*SPECULATORS, *CONNECTORS] if name != "empty_sample_dtype"]
)
def test_the_check_passes_for_each_patch(
    name: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    if name in CONNECTORS and (why_not := mooncake.missing()):
        pytest.skip(why_not)
    tree = laid_out("0.9.0")
    done = export(name, "--check", "--tree", tree, "--out", tmp_path, "--json")
    assert outcomes(done)[name]["verdict"] == "exported", done.stdout


@pytest.mark.nightly
@pytest.mark.parametrize("name", VLLM)
def test_the_check_passes_for_vllm(name: str, tmp_path: Path) -> None:
    done = export(name, "--check", "--tree", vllm_tree(), "--out", tmp_path, "--json")
    assert outcomes(done)[name]["verdict"] == "exported", done.stdout


@pytest.mark.parametrize("version", ["0.6.0.2", "0.8.1"])
def test_where_it_is_not_needed_it_says_so(
    version: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    tree = laid_out(version)
    done = export("empty_sample_dtype", "--tree", tree, "--out", tmp_path)
    assert done.returncode == 0
    assert "not needed: upstreamed in 0.6.0 (#527)" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_changed_function_is_refused_and_can_be_insisted_on(
    src_layout: Path, tmp_path: Path
) -> None:
    file = src_layout / "src/speculators/train/graceful_shutdown.py"
    file.write_text(file.read_text().replace("interrupt training for", "stop training for"))
    words = ["interruptible_retries", "--tree", src_layout, "--out", tmp_path / "out"]
    dirty = export(*words)
    assert dirty.returncode == 2
    assert "is no clean checkout" in dirty.stderr
    subprocess.run(
        ["git", "-C", str(src_layout), "-c", "user.name=U", "-c", "user.email=u@localhost",
         "commit", "-qam", "changed"],
        check=True,
    )  # fmt: skip
    refused = export(*words)
    assert refused.returncode == 1
    assert "train/graceful_shutdown.py:TrainingInterruptedError is" in refused.stdout
    assert "--allow-drift interruptible_retries" in refused.stdout
    assert not (tmp_path / "out").exists()
    insisted = export(*words, "--allow-drift", "interruptible_retries")
    assert insisted.returncode == 0, insisted.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tree", "x", "--out", "y"), "give names or --all"),
        (("nothing", "--tree", "x", "--out", "y"), "no exported patch named nothing"),
        (("strict_draft_vocab", "--out", "y"), "--tree DIR and --out DIR are needed"),
        (("strict_draft_vocab", "--tree", "absent", "--out", "y"), "absent is no folder"),
        (("strict_draft_vocab", "--tree", "tests", "--out", "y"), "neither src/speculators/ nor"),
        (
            ("strict_draft_vocab", "--tree", "tests", "--out", "y", "--author", "me"),
            'is not of the form "Name <mail>"',
        ),
    ],
)
def test_bad_input_is_one_sentence(words: tuple[str, ...], says: str) -> None:
    done = export(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_source_without_a_version_asks_for_one(src_layout: Path, tmp_path: Path) -> None:
    (src_layout / "src/speculators/version.py").unlink()
    shutil.rmtree(src_layout / ".git")
    words = ["strict_draft_vocab", "--tree", src_layout, "--out", tmp_path / "out"]
    assert "give it with --tree-version" in export(*words).stderr
    assert "is no version number" in export(*words, "--tree-version", "newest").stderr
    assert export(*words, "--tree-version", "0.9.0").returncode == 0


def test_the_author_and_the_sign_off_are_the_user_s(src_layout: Path, tmp_path: Path) -> None:
    done = export(
        "strict_draft_vocab", "--tree", src_layout, "--out", tmp_path / "out",
        "--author", "Ada L <ada@example.org>", "--signoff",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (patch,) = (tmp_path / "out").rglob("*.patch")
    assert "From: Ada L <ada@example.org>" in patch.read_text()
    assert "Signed-off-by: Ada L <ada@example.org>" in patch.read_text()


# What the exported tests ask of upstream's own names has to hold for the overlay as well.
# Step -> pytest's -k; what is left out asks for something that only one of the two has.
PARITY = {
    "ttt-accuracy-denominators": "",
    "guard-cached-samples": "",
    "split-by-conversation": "",
    "train-on-cpu": "",
    "whole-conversations": "not older_version and not twice_is_kept and not two_copies",
    "skip-non-finite-steps": "",
    "float32-finetune": "",
    "interrupt-retry-guards": "",
    "save-best-scope": "",
    "skip-empty-batches": "",
    "full-precision-state": "it_ends_with_the_same_weights",
    "refuse-missing-token-freq": "",
    "eagle3-verifier-norm": "not layers",
    "finetune-named-verifier": "not told and not files",
    "softcap-targets": "",
    "check-before-move": "",
    "wait-for-vllm": "comes_up_late or restart",
    "several-vllm-endpoints": "costs_no_sample or one_address or failure_as_before",
    "extend-draft-mask": "",
    "accuracy-without-sync": "",
    "accumulators-on-device": "",
    "deterministic-cuda": "",
    "wait-for-mooncake-master": "not once and not interrupted",
    "unlocked-batch-release": "",
    "look-for-locks-more-often": "",
}

# Files of tests about something that only the pull request has.
NOT_COMMON = {"test_endpoint_rotation.py"}


@pytest.mark.nightly
@pytest.mark.parametrize("slug", PARITY)
def test_the_overlay_passes_what_goes_upstream(
    slug: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    """The exported tests against unpatched 0.9.0, with the overlay's own patch in force."""
    from speculators_patches.export import code

    laid_out("0.9.0")
    name, step = next(
        (name, step) for name, item in spec.table().items() for step in item.steps
        if step.slug == slug
    )  # fmt: skip
    common = {path: source for path, source in step.tests.items() if source not in NOT_COMMON}
    for path, source in common.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code.whole(spec.table()[name].folder / source))
    # What one pull request does is here in two patches.
    beside = {"step_checkpoints": "save_best_scope", "cached_sample_errors": "finite_guard"}
    only = ",".join(filter(None, (name, beside.get(name))))
    done = subprocess.run(
        [sys.executable, "-m", "speculators_patches", "run", "--only", only,
         "--module", "pytest", "--", "-q", "-p", "no:cacheprovider", "-k", PARITY[slug],
         "--rootdir", tmp_path, *common],
        # A test loses one sample of three on purpose.
        env=matrix.environment("0.9.0") | {"SPECULATORS_PATCHES_MAX_LOST_SHARE": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
