"""The archive: the rows that streams have read of topics, as Parquet files by day.

Every sealed row is in it once, whatever was killed; a manifest names its files with their digests.
"""
