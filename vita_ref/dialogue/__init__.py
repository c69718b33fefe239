"""The parts of a conversation: its messages with their media, and the file in which it is saved."""
