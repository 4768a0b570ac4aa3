"""Boards for the page: a small one of real records with kernels, costs and a ledger; a hostile and a large one."""

import random
from datetime import date

from board_fixtures import Bench, coin, made, oracle, pooled, scaled, shrunk
from kernel_fixtures import grid, write_kernels

from leaderboard.agreement import GainAgreement, MarginAgreement
from leaderboard.board import build_board
from leaderboard.ledger import Submitted, Verified, append, margins_of
from leaderboard.rows import Failure, Interval
from leaderboard.store import read_record

evil = '<img src=x onerror="window.pwned=1"></script><script>window.pwned=1</script>\'"&{{7*7}}'
CARDS = [
    {"name": "shrunk", "title": "Shrunk", "equation": "theta_u = w theta", "citation": "This file", "level": "feature"},
    {"name": "pooled-bt", "title": "Pooled Bradley-Terry", "equation": "r = <theta, x>"},
]


def submitted(root, method):
    """Write a ledger in which a method was submitted twice and then verified, as `accept` and `rerun` would."""
    records = [read_record(path) for path in sorted(root.glob(f"records/*/{method}/*.json"))]
    own = {"method": method, "dist": "hetpref", "version": "1", "date": date(2026, 11, 1), "bundle": "b" * 64}
    told = {**own, "supersedes": None, "failed": 0, "truncated": 0, "dirty": False, "commits": ["c" * 40]}
    for attempt in (1, 2):
        append(root, Submitted, {**told, "attempt": attempt, "margins": margins_of(records)})
    rerun = MarginAgreement(decisions=0.0, accuracy_then=0.8, accuracy_now=0.8)
    salted = GainAgreement(submitted=0.1, found=0.1, error=0.01)
    agreed = {"record": records[0].key, "reviewer": "someone", "salt": "salt", "rerun": rerun, "salted": salted}
    append(root, Verified, {**own, **agreed})


def small_board(root):
    """Return a board of two datasets, five methods and controls and a failed one, kernels and a ledger."""
    data = {"made@1": made(n_users=24, n_units=20), "other@1": made(name="other@1", n_users=20, n_units=20, seed=1)}
    bench = Bench(root, data=data, seeds=2)
    methods = {"pooled-bt": pooled, "oracle": oracle, "shrunk": shrunk, "scaled": scaled, "random": coin}
    bench.run(methods)
    bench.run({"broken": shrunk}, status="failed")
    write_kernels(root, grid())
    submitted(root, "shrunk")
    return priced(build_board([root], CARDS, bench.labels).leaderboard)


def priced(board):
    """Return the board with bytes and memory that differ: the more a method stores, the more it needs."""
    order = sorted({c.label for c in board.costs})
    costs = [
        c.model_copy(
            update={
                "state_bytes_per_user": 4.0 * order.index(c.label),
                "peak_rss_delta_bytes": 1e6 * (1 + order.index(c.label)),
            }
        )
        for c in board.costs
    ]
    return board.model_copy(update={"costs": costs})


def hostile_board(board, text):
    """Return the board with a text wherever a record, a card or the ledger has one, as if no check were made."""

    def changed(rows, *fields):
        return [r.model_copy(update=dict.fromkeys(fields, text)) if r.method == "shrunk" else r for r in rows]

    cards = [{**card, "title": text, "population": text, "licence": text, "notes": text} for card in board.datasets]
    rows = [r.model_copy(update={"config": {text: text}}) for r in changed(board.rows, "label")]
    return board.model_copy(
        update={
            "datasets": cards,
            "methods": [{"name": text, "spec": {"title": text, "equation": text}}, *board.methods],
            "rows": [r.model_copy(update={"dataset": text}) if r.dataset == "other@1" else r for r in rows],
            "curves": [
                c.model_copy(update={"dataset": text}) if c.dataset == "other@1" else c
                for c in changed(board.curves, "label")
            ],
            "costs": changed(board.costs, "label", "device_class"),
            "overall": changed(board.overall, "label"),
            "failures": [Failure.model_construct(**{**dict(f), "reason": text}) for f in board.failures],
            "kernels": [r.model_copy(update={"cell": text, "routing": text}) for r in board.kernels],
            "ledger": [{**entry, "method": text, text: text} for entry in board.ledger],
        }
    )


def large_board(board, methods=25, datasets=6, budgets=4):
    """Return a board of the size that is to be expected: its rows are copies of a small board's, moved a little."""
    told = random.Random(0)
    names = [f"method-number-{i}" for i in range(methods)]
    rows = [r for r in board.rows if r.label == "shrunk" and r.dataset == "made@1"]
    costs = {(c.regime, c.n_train, c.n_support): c for c in board.costs if c.label == "shrunk"}
    curves = [c for c in board.curves if c.label == "shrunk" and c.dataset == "made@1"]
    out = {"rows": [], "costs": [], "curves": []}
    for dataset in (f"made-{i}@1" for i in range(datasets)):
        for regime, name in ((r, n) for r in ("seen", "unseen", "known-prompts") for n in names):
            source = "seen" if regime == "seen" else "unseen"
            place = {"dataset": dataset, "regime": regime, "label": name, "method": name}
            for row in (r for r in rows if r.regime == source):
                for k in range(1 if row.headline else budgets):
                    value = told.uniform(0.6, 0.8)
                    changes = {
                        "acc_macro": Interval(value=round(value, 6), low=round(value - 0.02, 6), high=0.82),
                        "records": [f"{told.getrandbits(64):016x}" for _ in range(5)],
                        "seeds": [0, 1, 2, 3, 4],
                        "n_train": row.n_train if row.n_train == "all" else row.n_train + k,
                    }
                    out["rows"].append(row.model_copy(update=place | changes))
                    cost = costs[row.regime, row.n_train, row.n_support]
                    priced_at = {"state_bytes_per_user": float(told.randint(0, 4096)), "n_train": changes["n_train"]}
                    out["costs"].append(cost.model_copy(update=place | priced_at))
            out["curves"] += [c.model_copy(update=place) for c in curves if c.regime == source]
    cards = [{**board.datasets[0], "id": f"made-{i}@1"} for i in range(datasets)]
    return board.model_copy(update={**out, "datasets": cards, "overall": []})
