"""The figures that the project claims about itself, measured by pytest-benchmark: tox run -e figures."""
