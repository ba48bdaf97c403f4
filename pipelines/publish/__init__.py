"""Publishing the kernel's publications to the online store and the offline log.

While a store is unavailable, writes wait. Writes that a store has lost are detected and repeated.
"""
