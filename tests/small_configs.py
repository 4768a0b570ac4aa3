"""Small configurations of methods whose defaults, the published sizes, take minutes: for tests of what they do."""

SMALL = {
    "vpl": {"width": 16, "latent": 4, "steps": 20},
    "spl": {"width": 16, "latent": 4, "steps": 15},
    "gpo": {"width": 16, "layers": 1, "heads": 2, "steps": 10},
    "pal-a": {"width": 8, "steps": 20, "new_steps": 5},
    "pal-b": {"width": 8, "steps": 20, "new_steps": 5},
    "dpl-mean-variance": {"width": 8, "steps": 20},
    "dpl-categorical": {"width": 8, "steps": 20},
    "copl": {"embedding": 8, "layers": 2, "width": 12, "experts": 3, "rank": 2, "graph_steps": 15, "steps": 15},
    **{
        name: {"lm": "tiny-llama@1", "history_tokens": 150, "response_tokens": 6}
        for name in ("in-context", "in-context-judge", "in-context-persona")
    },
}
