"""The claims of the KPFlow paper against our numbers: ``python -m reproduction``.

``measure`` takes the networks that ``examples/networks.py`` has trained (``make checkpoints``) and
writes one small labelled file for each into ``results/``: ``ranks`` of the operators over training,
``alignments`` between four tasks, and the ``state_change`` of gradient steps, which needs no
training. ``page`` makes ``docs/reproduction.rst`` and its figures from these files alone, with
neither networks nor PyTorch: ``claims_of_ranks`` and ``claims_of_learning`` hold the criteria and
``verdicts`` what follows from them.
"""
