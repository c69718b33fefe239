"""`python -m tools.bench`: see `run.py`."""

from tools.bench.run import main

main()
