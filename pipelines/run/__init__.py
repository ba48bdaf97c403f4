"""What a run shows and keeps about itself: progress, meters, summary, record."""
