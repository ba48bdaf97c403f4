"""The validation of raw rows against a declared schema.

Each row becomes typed cells, or a rejected record with a stage, a reason and the untouched payload.
"""
