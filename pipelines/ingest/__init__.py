"""From raw files to the accepted log and the rejected records; repaired records go in again."""
