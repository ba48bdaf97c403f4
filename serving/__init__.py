"""What answers: bundles, the inference engine, the online store."""
