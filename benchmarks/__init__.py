"""What kpops costs, measured beside what one would use without it: ``python -m benchmarks``.

``cases`` says on which problems, ``contenders`` who competes and ``products`` how their products
are timed side by side; ``growth``, ``memory`` and ``busy`` look at kpops alone; ``stacks`` are
timed against a floor, ``scan`` against loops over time, ``exponents`` against a loop by hand.
``spectra`` times whole calls against ``one_vector`` at ``equal`` residuals; ``certainty`` and
``estimators`` find how often, and by how much, results are off. ``suite`` writes the numbers to a
JSON file and ``page`` makes the page of the documentation from it.
"""
