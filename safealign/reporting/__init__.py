"""Reports: the summary of a run, terminal tables, pictures, and the model card of an export."""
