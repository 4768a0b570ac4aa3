"""What learns from preferences: one common interface, one file per method."""
