"""The parts of the command line: flags, batch files, spoken answers, progress bars, several processes."""
