"""What is refused before it is computed, and what is accepted in another form: media, arguments, rows of a batch.

The reading path calls one function of this package for each; nothing here is needed to understand it.
"""
