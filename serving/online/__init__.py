"""The online store: one row per entity, the newest publication wins, ages are honest.

`database` states what every backend promises. The backends stand in folders of their own.
"""
