"""The first script of a rewritten subprocess: applies the parent's patches, then runs its program.

    python [flags] rejoin.py SELECTION (-m M | script.py | -c CODE) ARGS

Run as a file, so that it works in any folder and under `-I`, where no path of ours is set.
"""

import sys
from pathlib import Path


def main() -> None:
    """Applies the patches and runs the program; `sys.path[0]`, this folder, becomes its own."""
    home = str(Path(__file__).resolve().parent.parent)
    if home not in sys.path:
        sys.path.append(home)
    from speculators_patches import launcher

    _, selection, kind, *rest = sys.argv
    if kind == "-m":
        program = launcher.Program(module=rest[0], args=tuple(rest[1:]))
    elif kind == "-c":
        program = launcher.Program(code=rest[0], args=tuple(rest[1:]))
    else:
        program = launcher.Program(script=kind, args=tuple(rest))
    launcher.enter(program, selection)


if __name__ == "__main__":
    main()
