"""From the kernel's publications to the online store and the offline log.

Nothing is dropped while a store is away; what a store lost is found and written again.
"""
