"""Methods of level "prompt": a language model reads what a person said, and nothing is trained."""
