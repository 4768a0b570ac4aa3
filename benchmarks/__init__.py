"""What is measured: suites, the runner, resource meters and the command line."""
