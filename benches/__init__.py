"""Benchmarks from Python: eventbus and its peers side by side, in one run (`python -m benches`)."""
