"""What a request does inside: traces of a run, and what it needs before it runs."""
