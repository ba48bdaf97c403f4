"""What a feature is: definitions, the contract of time, the kernel and its oracle. Pure."""
