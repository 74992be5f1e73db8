"""Claims of the literature against our numbers: ``python -m reproduction measure``.

A claim is a :class:`reproduction.row.Row`: what a paper says, a function that measures it for a
seed, and criteria that are written before their numbers are seen. ``rows`` has them, ``registry``
their order. A measurement is a study (:class:`kpops.Study`) over seeds, which can be interrupted;
its labelled file, with settings, seeds, versions and the hash of its script, is committed in
``results/``, from which ``examples/claims.py`` draws the page. ``verdicts`` turns numbers into
verdicts; ``protocol`` trains networks as the scripts of the KPFlow paper do.
"""
