"""What the README tells a newcomer to type to submit a method is typed, word for word, in a clone of their own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def walkthrough():
    """Return the lines of the README's block in which a method is submitted."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Submit a method\n\n```\n(.*?)```", text, re.DOTALL)
    return block


@pytest.fixture
def newcomer(tmp_path):
    """A clone of this tree and a virtual environment that lacks nothing but the package itself."""
    clone, venv = tmp_path / "hetpref", tmp_path / "venv"
    files = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-C", clone, "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as it is"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    own = next(venv.glob("lib/python*/site-packages"))
    for old in [*own.glob("setuptools*"), *own.glob("pkg_resources*"), *own.glob("_distutils_hack*")]:
        shutil.rmtree(old)  # what Python brings is too old to build with, and would hide the one that is installed
    here = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (own / "requirements.pth").write_text("\n".join(dict.fromkeys(here)) + "\n")
    editor = tmp_path / "editor"
    editor.write_text(f"#!{sys.executable}\n" + EDIT)
    editor.chmod(0o755)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "EDITOR": str(editor),
        # All that is required is installed already, and nothing is compiled for this.
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads the opposite of the name: this switches isolation off
        "CC": "false",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    return clone, environment


# The author's mathematics, put in by an editor: more shrinkage than the scaffold's.
EDIT = """
import pathlib, sys
path = pathlib.Path(sys.argv[1])
text = path.read_text()
assert "My method" in text
path.write_text(text.replace("My method", "My own method"))
"""


def typed(script, clone, environment):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_readmes_walk_through_works_as_it_is_written(newcomer):
    clone, environment = newcomer
    script = walkthrough()
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    said = typed(script, clone, environment)
    assert "verified: it would be accepted as it is" in said
    assert "against pooled-bt: seen " in said
    bundle = clone / "submissions" / "my-method"
    assert "My own method" in (bundle.parent / "my-method.md").read_text()
    said = typed(f"hetpref verify {bundle} && hetpref accept {bundle} --results board", clone, environment)
    assert "accepted, attempt 1 of my-method" in said


def test_a_method_in_a_distribution_of_its_own_is_submitted_in_the_same_way(newcomer):
    clone, environment = newcomer
    script = """
    pip install -q -e '.[site,test]'
    hetpref new their-method --plugin --in ..
    pip install -q -e ../hetpref-their-method
    hetpref check their-method
    hetpref run smoke --seeds 3 --methods their-method,pooled-bt,random --out results/theirs
    hetpref submit their-method --results results/theirs
    hetpref accept submissions/their-method --results board
    """
    said = typed(script, clone, environment)
    assert "verified: it would be accepted as it is" in said
    ledger = (clone / "board" / "submissions.jsonl").read_text()
    assert '"dist": "hetpref-their-method"' in ledger
