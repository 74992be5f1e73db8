"""Learning rules that are linear in the error, as operators R of ``dh = -eta R Err``."""
