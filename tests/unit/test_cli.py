"""The command line: exit codes, one-sentence errors, and running programs as Python would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_PATCHES = ("run", "--only", "")


def cli(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`python -m speculators_patches ARGUMENTS`."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "speculators_patches", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, env=env, timeout=120,
    )  # fmt: skip


def plain(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same program under Python alone."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=120
    )


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A script and, in the same folder, a module of the same content."""
    (tmp_path / "beside.py").write_text("NAME = 'found beside the program'\n")
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, pickle, beside\n"
        "class Thing: pass\n"
        "main = sys.modules['__main__']\n"
        "pickle.loads(pickle.dumps(Thing()))\n"
        "print(__name__, sys.argv[1:], sys.path[0], beside.NAME, main.__dict__ is globals())\n"
        "print(__file__.endswith('program.py'), getattr(__spec__, 'name', None))\n"
        "what = sys.argv[1] if len(sys.argv) > 1 else '0'\n"
        "if what == 'crash':\n"
        "    raise RuntimeError('the program crashed')\n"
        "if what == 'interrupt':\n"
        "    raise KeyboardInterrupt\n"
        "sys.exit(int(what) if what.isdigit() else what)\n"
    )
    return script


def test_a_script_runs_as_under_python(program: Path) -> None:
    ours = cli(*NO_PATCHES, program, "--", "7", "--flag", "--", "-x", cwd=program.parent)
    theirs = plain(program, "7", "--flag", "--", "-x", cwd=program.parent)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert ours.returncode == 7


def test_a_module_runs_as_under_python(program: Path) -> None:
    ours = cli(*NO_PATCHES, "--module", "program", "--", "3", cwd=program.parent)
    theirs = plain("-m", "program", "3", cwd=program.parent)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert "program" in ours.stdout.splitlines()[1]


def test_a_package_s_main_runs(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "__main__.py").write_text("print(__name__, __package__, __spec__.name)\n")
    ours = cli(*NO_PATCHES, "--module", "pkg", cwd=tmp_path)
    assert ours.stdout == plain("-m", "pkg", cwd=tmp_path).stdout == "__main__ pkg pkg.__main__\n"


@pytest.mark.parametrize("how", ["crash", "interrupt", "a message on stderr"])
def test_the_program_s_failure_is_its_own(program: Path, how: str) -> None:
    ours = cli(*NO_PATCHES, program, how, cwd=program.parent)
    theirs = plain(program, how, cwd=program.parent)
    assert ours.returncode == theirs.returncode
    assert ours.stderr == theirs.stderr, "the traceback has no frame of the launcher"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run",), "give --module M or a SCRIPT.py"),
        ((*NO_PATCHES, "no/such/script.py"), "there is no script no/such/script.py"),
        ((*NO_PATCHES, "--module", "no_such_module_here"), "no module no_such_module_here"),
        ((*NO_PATCHES, "--module", "json.no_such_part"), "no module json.no_such_part"),
        (("run", "--only", "nope", "x.py"), "no patch named nope; there are "),
        (("run", "--skip", "nope", "x.py"), "no patch named nope; there are "),
        (("run", "--only", ",", "x.py"), "--only and --skip leave no patch"),
        (("run", "--only", "finite_guard", "--skip", "finite_guard", "x.py"), "leave no patch"),
        (("status", "--allow-drift", "nope"), "no patch named nope; there are "),
        (("fingerprint", "json:nope"), "json:nope is not defined"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], sentence: str
) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_status_without_speculators_is_one_sentence_and_exit_code_2() -> None:
    code = (
        "import importlib.metadata as m, sys\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'speculators': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "sys.argv = ['x', 'status']\n"
        "from speculators_patches.__main__ import main; main()\n"
    )
    done = plain("-c", code, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("speculators_patches: speculators is not installed")
    assert done.stderr.count("\n") == 1


def test_status_json_has_a_row_for_every_patch_and_the_versions() -> None:
    from speculators_patches import patches

    content = json.loads(cli("status", "--json").stdout)
    assert [row["patch"] for row in content["patches"]] == list(patches.table())
    assert {"python", "speculators"} <= set(content["versions"])
    assert not any(row["active"] for row in content["patches"])


def test_the_table_shows_every_patch_and_whole_links() -> None:
    from speculators_patches import patches

    shown = cli("status").stdout
    for patch in patches.table().values():
        assert patch.name in shown
        if patch.upstream.startswith("https://") and " " not in patch.upstream:
            assert patch.upstream in shown


@pytest.mark.parametrize(
    ("how", "flags"),
    [
        ("script", ()),
        ("script", ("-I",)),
        ("script", ("-P", "-u")),
        ("-m", ()),
        ("-c", ()),
        ("-c", ("-I",)),
    ],
)
def test_a_rewritten_subprocess_finds_modules_where_python_would(
    tmp_path: Path, how: str, flags: tuple[str, ...]
) -> None:
    from speculators_patches import command_line, workers

    text = "import sys; print(sys.argv[1:], sys.flags.isolated, sys.path)"
    (tmp_path / "shown.py").write_text(text)
    words = {"script": ["shown.py"], "-m": ["shown"], "-c": [text]}[how]
    command = [sys.executable, *flags, *([] if how == "script" else [how]), *words, "a", "--b"]
    rewritten = command_line.rewrite(command, workers.Selection(()).to_json())
    assert rewritten != command
    env = os.environ | {"PYTHONPATH": str(tmp_path / "from_pythonpath")}
    ours, theirs = (
        subprocess.run(c, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=120)
        for c in (rewritten, command)
    )
    without_our_folder = ours.stdout.replace(f", {workers.HOME!r}]", "]")
    assert (without_our_folder, ours.returncode) == (theirs.stdout, theirs.returncode), ours.stderr
