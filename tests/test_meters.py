"""What a cost is: seconds of the processor on a CPU, whoever does the work."""

import subprocess
import sys
import time

from benchmarks.meters import Clock


def test_waiting_costs_nothing_and_work_of_children_counts():
    clock = Clock()
    with clock.measure("waiting"):
        time.sleep(0.3)
    work = "import time\nwhile time.process_time() < 0.3: pass"
    with clock.measure("child"):
        subprocess.run([sys.executable, "-S", "-c", work], check=True, timeout=60)
    assert clock.seconds["waiting"] < 0.1
    assert clock.seconds["child"] > 0.25


def test_blocks_of_one_name_add_up():
    clock = Clock()
    for _ in range(2):
        with clock.measure("work"):
            end = time.process_time() + 0.05
            while time.process_time() < end:
                pass
    assert 0.1 <= clock.seconds["work"] < 0.3
