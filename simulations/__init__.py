"""Running experiments: command line, experiment files, engines, deployment, benchmarks."""
