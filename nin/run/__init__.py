"""One training run: trained, evaluated and recorded in a folder."""
