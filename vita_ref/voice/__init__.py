"""The networks of speech (text rows to codec tokens to sound), and the preparation of text for them."""
