"""The same values in plain Python, from the definitions alone.

Slow and obvious. The oracle shares no code with the kernel, so a fault of the kernel shows.
"""
