"""The claims of the KPFlow paper against our numbers: ``python -m reproduction``.

``measure`` takes the networks that ``examples/networks.py`` has trained (``make checkpoints``) and
writes a small labelled file for each into ``results/``. It does so by three studies
(:class:`kpops.Study`) over networks: ``ranks`` of the operators over training, ``alignments``
between four tasks, and the ``state_change`` of gradient steps, which needs no training.
``examples/claims.py`` draws these files: ``claims_of_ranks`` and ``claims_of_learning`` have the
criteria, ``verdicts`` turns their outcomes into verdicts.
"""
