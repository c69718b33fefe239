"""What the command line needs besides the answer: flags, batch files, spoken answers, progress bars, several processes."""
