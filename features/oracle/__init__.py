"""Feature values in plain Python, from the definitions alone.

Slow and obvious. The oracle shares no code with the kernel, so it finds the kernel's mistakes.
"""
