"""A plug-in that fails on import."""

raise ImportError("this machine has no teapot")
