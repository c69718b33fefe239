"""Speech: the networks that turn text into codec tokens and those into sound, and text made speakable."""
