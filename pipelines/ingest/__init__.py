"""From raw files to the log and the rejected records, which can be repaired and read in again."""
