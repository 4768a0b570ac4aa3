"""The published defects, each made once on purpose: the figure that it gives beside the honest one.

`python -m benchmarks.pitfalls` measures them and prints their tables. A pitfall is one file and one entry in
`registry`. This package stands on the scoring side: it reads query labels, by the leaderboard's functions (`scores`),
and hands none of them to a method (`fits`).
"""
