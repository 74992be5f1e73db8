"""Iterations for leading modes; ``eigsh`` and ``svds`` choose among them."""
