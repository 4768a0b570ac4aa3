"""Reward models that train low-rank adapters inside a transformer, everybody jointly in mixed batches."""
