"""What kpops costs, beside what one would use without it: ``python -m benchmarks``.

``cases`` lists the problems, ``contenders`` defines who competes, and ``products`` times their
products side by side. ``growth``, ``memory`` and ``busy`` measure kpops alone. ``stacks`` compares
with a floor, ``scan`` with loops over time, ``exponents`` with a loop by hand. ``spectra`` compares
whole calls with ``one_vector`` at ``equal`` residuals. ``certainty`` and ``estimators`` find how
often, and by how much, results are off. ``suite`` writes the numbers to JSON files, which
``examples/speed.py`` draws.
"""
