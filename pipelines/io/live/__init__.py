"""Live sources: messages become polls that are written down whole before they are sent.

So a recovery repeats them byte for byte, whatever the broker has deleted or compacted since.
"""
