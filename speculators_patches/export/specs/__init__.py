"""One folder per exported patch.

`__init__.py` holds the `SPEC`; `code_*.py` what is inserted into upstream's functions, written for
upstream's modules and never imported here; `test_*.py` goes into upstream's `tests/`; `reproduce*.py`
shows the defect on an unpatched tree.
"""
