"""Facts about machine, model and data. Decides nothing."""
