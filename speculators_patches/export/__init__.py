"""Turns patches of the overlay into patches of upstream's own files, which a maintainer can merge.

`tree` finds a clean checkout or unpacked source; `edits` changes its functions by name; `spec` is
what one pull request consists of (`specs/` has one folder each); `series` makes the commits and
`gitpatch` the files that `git am` takes; `check` shows each defect before and its absence after;
`pull_request` writes the text. No text of upstream is stored here: what surrounds a change comes
from the tree given.
"""
