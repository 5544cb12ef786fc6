"""The table of patches, their files, their proofs and UPSTREAM.md agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from speculators_patches import patches, upstream_table
from speculators_patches.export import spec
from speculators_patches.registry import Patch

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path for path in (ROOT / "speculators_patches" / "patches").glob("*.py") if path.stem[0] != "_"
)


def test_every_file_is_in_the_table_and_nothing_else() -> None:
    assert list(patches.table()) == [path.stem for path in FILES]
    assert FILES, "a table without patches"


@pytest.mark.parametrize("patch", patches.table().values(), ids=lambda patch: patch.name)
class TestPatch:
    def test_its_name_is_its_file_s_name(self, patch: Patch) -> None:
        assert patches.table()[patch.name] is patch

    def test_it_replaces_something(self, patch: Patch) -> None:
        assert any(not target.observed for target in patch.targets)
        module = patches.module_of(patch.name)
        assert callable(module.replacements)
        assert list(module.replacements.__annotations__)[:1] == ["originals"]

    def test_its_targets_are_of_one_package_and_listed_once(self, patch: Patch) -> None:
        changed = {target.module.partition(".")[0] for target in patch.targets}
        assert len(changed) == 1
        assert patch.used_by not in changed
        assert patch.package in changed | {patch.used_by}
        paths = [target.path for target in patch.targets]
        assert len(paths) == len(set(paths))

    def test_its_fingerprints_can_be_read(self, patch: Patch) -> None:
        for target in patch.targets:
            assert target.fingerprints, f"{target.path} has no fingerprint"
            for versions, known in target.fingerprints.items():
                SpecifierSet(versions)
                assert re.fullmatch(r"[0-9a-f]{16}", known), f"{target.path}: {known}"

    def test_every_tested_version_that_needs_it_has_a_fingerprint(self, patch: Patch) -> None:
        assert patch.tested, "a patch says which versions it was run on"
        for version in filter(patch.needed.contains, map(Version, patch.tested)):
            for target in patch.targets_in(version):
                covered = any(SpecifierSet(spec).contains(version) for spec in target.fingerprints)
                assert covered, f"{target.path} has no fingerprint for {version}"

    def test_it_is_not_needed_where_it_is_fixed(self, patch: Patch) -> None:
        if patch.fixed_in is not None:
            assert not patch.needed.contains(Version(patch.fixed_in))

    def test_its_proof_exists(self, patch: Patch) -> None:
        file, _, name = patch.proof.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name.rpartition("::")[2] in names

    def test_its_row_in_upstream_md_is_its_record(self, patch: Patch) -> None:
        assert upstream_table.row(patch) in (ROOT / "UPSTREAM.md").read_text()

    def test_its_row_says_what_upstream_knows_and_what_was_offered(self, patch: Patch) -> None:
        cells = [cell.strip() for cell in upstream_table.row(patch).strip("|\n ").split(" | ")]
        assert len(cells) == 9
        assert all(cells)
        upstream, offered = cells[4], cells[8]
        assert upstream.startswith(("no issue found", "https://github.com/"))
        assert re.match(r"((fix|feat|perf)\(|\[Bugfix\])", offered)
        assert offered.count("(here: ") == len(spec.table()[patch.name].steps)


@pytest.mark.parametrize("item", spec.table().values(), ids=lambda item: item.name)
def test_issues_and_pull_requests_have_a_state_and_a_date(item: spec.Spec) -> None:
    """The state of each, and a date for each pull request that leads somewhere."""
    for found in re.finditer(r"#\d+", item.related):
        after = item.related[found.end() :]
        assert re.match(r"( and #\d+| for #\d+|,? #\d+)* \((RFC, )?(open|merged|closed)", after), (
            found
        )
    assert not item.related or re.search(r"\d{4}-\d{2}", item.related)


def table_rows() -> str:
    return (ROOT / "UPSTREAM.md").read_text().partition(upstream_table.END)[0]


def test_upstream_md_has_no_other_rows() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", table_rows(), flags=re.MULTILINE)
    exported = [item.name for item in upstream_table.without_record()]
    assert rows == [*patches.table(), *exported]
    assert "vllm_cpu_hidden_states" in exported


def test_what_is_exported_without_a_patch_has_its_row() -> None:
    for item in upstream_table.without_record():
        line = upstream_table.exported_row(item)
        assert line in (ROOT / "UPSTREAM.md").read_text()
        assert len(line.strip("|\n ").split(" | ")) == 9


def test_what_was_not_run_is_said() -> None:
    said = upstream_table.row(patches.table()["interruptible_retries"])
    assert "| 0.8.1 to 0.9.0; 0.6.0 and what follows it were read, not run |" in said
    assert "| 0.8.1 to 0.9.0 |" in upstream_table.row(patches.table()["finite_guard"])


def test_retired_patches_are_gone() -> None:
    text = (ROOT / "UPSTREAM.md").read_text().partition("## Retired")[2]
    assert "| patch | removed on | because |" in text
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.+) \|$", text, flags=re.MULTILINE)
    for name, date, because in rows:
        assert name not in patches.table()
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", date)
        assert re.search(r"\d+\.\d+", because), "the upstream version that made it superfluous"
    assert ("None yet." in text) is (not rows)
