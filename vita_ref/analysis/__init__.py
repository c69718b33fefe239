"""Traces of the intermediates of a request, and estimates of its memory and operations."""
