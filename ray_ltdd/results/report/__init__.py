"""One self-contained HTML page about a run, or about a folder of runs such as a sweep. It reads what is there and computes nothing."""
