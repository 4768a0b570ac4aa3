"""What people said: datasets, splits, probes and frozen features."""
