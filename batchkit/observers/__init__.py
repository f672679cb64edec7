"""Tell: one file for each way to tell people how the run stands."""
