"""What is installed: the locks, what each locked distribution requires, and whether it fits."""
