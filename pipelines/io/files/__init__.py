"""Rows of csv, JSON Lines and Parquet files, each with its place and its bytes."""
