"""How an experiment is run: command line, experiments, engines, benchmarks."""
