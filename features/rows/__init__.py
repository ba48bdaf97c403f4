"""Raw rows judged against a declared schema.

A row becomes typed cells or a rejected record with a stage, a reason and the untouched payload.
Nothing else happens to it, and nothing is lost.
"""
