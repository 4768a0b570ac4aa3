"""The bridge to lm-eval: our splits as its tasks, and our fitted methods as its models."""
