"""Feature definitions, the contract of time, the kernel and its oracle: no I/O, no Beam."""
