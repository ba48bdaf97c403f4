"""The export of the archive as Delta tables, for programs that read those.

After a run, a table has exactly the rows of the archive's manifest, and its folder no file that the
table does not name. Only this package knows delta-rs.
"""
