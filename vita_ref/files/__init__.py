"""Checkpoint folders: their configs, safetensors files and tokenizers."""
