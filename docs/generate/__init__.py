"""The pages that are made from the code: ``make docs`` writes them.

Every sentence about a key or an expression is taken from the docstring of its class, and every
example is loaded or evaluated when the page is made. `tests/docs/generated_test.py` makes the pages
again and compares.
"""
