"""The proof: everything that was served, recomputed from the raw files and compared bit for bit."""
