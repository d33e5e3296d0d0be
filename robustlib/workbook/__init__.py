"""The shell around the package: notebooks in batches, studies and claims, reports, the explorer, the command line."""
