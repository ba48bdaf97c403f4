"""Rows of csv, JSON Lines and Parquet files, each with its position and its bytes."""
