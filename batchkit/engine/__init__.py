"""Carry out: reader, bounded workers, one writer. Its parts come in as arguments, so the same engine serves real and fake ones."""
