"""A trained model at work: sampling, scoring, export."""
