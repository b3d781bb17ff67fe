"""Output of a run: log, console, plots, report, model card and the run folder."""
