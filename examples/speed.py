r"""
What it costs, compared with other ways
=======================================

What does a matvec with :math:`P`, :math:`K` or :math:`P K P^{*}` cost, and what would it cost
without kpops? All contenders below compute the same matvecs, of the same models, on the same
trajectories, in one process and in turns. Each result agrees with automatic differentiation to one
part in a thousand. ``make benchmarks`` measures everything again on your machine (an hour) and
writes the numbers that this page draws: :download:`times <../../benchmarks/results/cpu.json>`, and
:download:`errors <../../benchmarks/results/cpu_accuracy.json>`, which another machine may have
measured. Times are medians of five repetitions or more. They exclude work that is shared by all
matvecs (linearising, storing, tracing, compiling).
"""

import json

import matplotlib.pyplot as plt
import numpy as np
from networks import REPOSITORY

results = REPOSITORY / "benchmarks/results"
found, judged = (json.loads((results / f"{n}.json").read_text()) for n in ("cpu", "cpu_accuracy"))
settings, environment, machine = (found[k] for k in ("settings", "environment", "machine"))
print(f"{environment['processor']}, {environment['threads']} threads; torch {environment['torch']}")
print(f"{machine['gemm_flops'] / 1e9:.0f} GFLOP/s in a large matrix product")
print(f"{settings['trials']} trials of {settings['steps']} steps, {settings['dtype']}")

# %%
# Matvecs
# -------
#
# The contenders without kpops are: the cell in a loop over time, differentiated by ``torch.func``
# (*unrolled*; *traced*, by ``torch.func.linearize``); ``nn.GRU`` called on the whole sequence
# (*fused*), which has no :math:`P`; the operators of curvlinops; and stored Jacobians behind a
# SciPy ``LinearOperator``. The *floor* is the same arithmetic as plain matrix products, as if no
# time step had to wait for the previous one. kpops compresses the features behind :math:`K` to
# their numerical rank, and can therefore be faster than the floor.

NAMES = {"P": "$P$", "K": "$K$", "flow": "$P K P^*$"}
LOOKS = {
    "kpops": dict(color="#0072B2", linewidth=2),
    "torch.func": dict(color="#D55E00", linestyle="--"),
    "curvlinops": dict(color="#009E73", linestyle="--"),
    "stored": dict(color="#CC79A7", linestyle="--"),
    "floor": dict(color="0.6", linestyle=":"),
}


def times(case, contender, operator):
    """Milliseconds per vector by size of the block."""
    cells = {
        p["block"]: p["ms_per_vector"]
        for p in case["products"]
        if (p["contender"], p["operator"]) == (contender, operator) and "ms_per_vector" in p
    }
    return list(cells), list(cells.values())


cases = {(case["model"], case["hidden"]): case for case in found["products"]}
case = cases["GRU", 256]
contenders = [
    "kpops gated_numba",
    "torch.func unrolled",
    "torch.func traced",
    "torch.func fused",
    "curvlinops",
    "stored Jacobians",
    "floor",
]
there = {p["contender"] for p in case["products"]}
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
markers = "osv^Dx."
for ax, (operator, name) in zip(axes, NAMES.items(), strict=True):
    for contender, marker in zip(contenders, markers, strict=True):
        look = next(v for k, v in LOOKS.items() if contender.startswith(k))
        blocks, ms = times(case, contender, operator)
        ax.loglog(blocks, ms, marker=marker, markersize=4, label=contender, **look)
    ax.set(title=name, xlabel="vectors in a block", xticks=settings["blocks"])
    ax.set_xticklabels(settings["blocks"])
    ax.minorticks_off()
axes[0].set_ylabel("ms per vector")
axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
fig.suptitle("GRU, 256 units")

# %%
# The flow operator at all sizes, on blocks of up to 16 vectors, each contender with its best block
# size:

print(f"{'':12}{'kpops, ms':>12}{'others, ms':>12}{'ratio':>8}{'of the floor':>14}")
for (model, hidden), case in cases.items():
    flow = [
        p
        for p in case["products"]
        if p["operator"] == "flow"
        and p["block"] <= 16
        and "ms_per_vector" in p
        and p["contender"] not in case["hidden_only"]
    ]
    others = [p for p in flow if not p["contender"].startswith(("kpops", "floor"))]
    ours = [p for p in flow if p["contender"].startswith("kpops")]
    best, other = (min(of, key=lambda p: p["ms_per_vector"]) for of in (ours, others))
    print(
        f"{model:5}{hidden:5}  {best['ms_per_vector']:12.3g}{other['ms_per_vector']:12.3g}"
        f"{other['ms_per_vector'] / best['ms_per_vector']:8.1f}"
        f"{100 * best['fraction_of_floor']:12.0f} %"
    )

# %%
# Spectra, end to end
# -------------------
#
# The calls a user makes (``eigvalsh(lin.K)``, ten modes by ``svds(lin.P)`` and ``eigsh(lin.flow)``,
# and the participation ratio of the flow operator) against SciPy's ARPACK on stored Jacobians, at
# equal residuals or standard errors.

print(f"{'':12}{'':15}{'kpops, s':>10}{'ARPACK, s':>11}{'ratio':>8}")
for record in found["spectra"]:
    for task in record["tasks"]:
        ours, theirs = (task[who]["seconds"] for who in ("kpops", "stored"))
        print(
            f"{record['model']:5}{record['hidden']:5}  {task['task']:15}{ours:10.3g}{theirs:11.3g}"
            f"{theirs / ours:8.0f}"
        )

# %%
# Whole tasks, by the method of the paper
# ---------------------------------------
#
# The same GRU by stored dense Jacobians, a Python loop over time and one vector at a time, from the
# network on, in another run: :download:`its numbers <../../benchmarks/results/paper.json>`.

tasks = json.loads((results / "paper.json").read_text())
print(f"{tasks['model']:26}{'kpops, s':>10}{'theirs, s':>11}{'ratio':>8}")
for name, both in tasks["seconds"].items():
    print(f"{name:26}{both['kpops']:10.3g}{both['paper']:11.3g}{tasks['ratio'][name]:8.0f}")
print(f"geometric mean of the ratios: {tasks['geometric_mean']:.0f}")

# %%
# Any network
# -----------
#
# The neural tangent kernel of the outputs, and :math:`P K P^{*}` over all sites, of a perceptron (4
# layers of 512 on 1,000 digits) and of a transformer (ten million parameters on 64 sequences). Each
# bar is the time of another way over that of kpops: a careful user's ``torch.func``, by forward
# mode after reverse mode or by reverse mode twice, and curvlinops. Twice reverse is what kpops does
# as well. :download:`The numbers <../../benchmarks/results/sites.json>`.

others = ["torch.func vjp, jvp", "torch.func vjp of vjp", "curvlinops"]
matvecs = json.loads((results / "sites.json").read_text())["matvecs"]
fig, ax = plt.subplots(figsize=(9, 3.2), layout="constrained")
for i, other in enumerate(others):
    at = [k for k, record in enumerate(matvecs) if other in record["ratio"]]
    ratios = [matvecs[k]["ratio"][other] for k in at]
    ax.bar(np.array(at) + 0.27 * (i - 1), ratios, width=0.25, label=other)
ax.axhline(1, color="0.3", linewidth=0.8)
labels = [f"{r['kind']}\n{r['operator']}\nblock of {r['block']}" for r in matvecs]
ax.set_xticks(range(len(matvecs)), labels, fontsize=7)
ax.set_ylabel("time over that of kpops")
ax.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))

# %%
# Right, unsure or wrong
# ----------------------
#
# The one serious failure would be a mode that is marked as converged but is not among the leading
# ones. The table counts outcomes over random matrices with known spectra, some of them hard (flat,
# clustered, repeated, of low rank), in float32 and float64 and at all scales:

certainty = judged["certainty"]
print(f"{2 * certainty['cases']} calls of eigsh and svds by each method")
print(f"{'':28}{'right':>8}{'unsure':>8}{'wrong':>8}")
for method, spectra in certainty["outcomes"].items():
    counts = [sum(s.get(o, 0) for s in spectra.values()) for o in ("right", "unsure", "wrong")]
    print(f"{method:28}" + "".join(f"{count:8}" for count in counts))

# %%
# Errors of estimates
# -------------------
#
# The trace from 64 matvecs, by method: the root mean square of the relative error (points) and the
# reported standard error (bars). Where few modes dominate, XTrace and XNysTrace are better by
# orders of magnitude. Where modes come in clusters larger than the number of matvecs, Hutchinson is
# unbeaten. ``auto`` decides from a part of the matvecs.

traces = [r for r in judged["estimators"] if r["quantity"] == "trace"]
operators = list(dict.fromkeys(r["operator"] for r in traces))
fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
for i, method in enumerate(("hutchinson", "xtrace", "xnystrace", "auto")):
    of = {r["operator"]: r for r in traces if r["method"] == method}
    x = np.arange(len(operators)) + 0.18 * (i - 1.5)
    rms, claimed = (np.array([of[o][k] for o in operators]) for k in ("rms", "claimed"))
    colour = f"C{i}"
    estimates = claimed > 0  # the others are exact, by the structure of K
    low, high = (end(rms, claimed)[estimates] for end in (np.minimum, np.maximum))
    ax.vlines(x[estimates], low, high, colour, alpha=0.4, lw=3)
    ax.plot(x, rms, "o", color=colour, markersize=4, label=method)
ax.set(yscale="log", ylabel="relative error of the trace", xticks=range(len(operators)))
ax.set_xticklabels(operators, rotation=30, ha="right")
ax.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))

# %%
# Growth
# ------
#
# Time per vector against trials, steps and units, with the engine that kpops chooses. The slopes of
# the arithmetic of :math:`P` are 1, 1 and 2; in small networks overhead dominates.

growth = found["growth"]
fig, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True, layout="constrained")
for ax, axis in zip(axes, ("trials", "steps", "hidden"), strict=True):
    for colour, (operator, name) in enumerate(NAMES.items()):
        for block, line in ((1, ":"), (16, "-")):
            of = (axis, operator, block)
            points = [p for p in growth["points"] if (p["axis"], p["operator"], p["block"]) == of]
            slopes = [s for s in growth["slopes"] if (s["axis"], s["operator"], s["block"]) == of]
            if points:
                at, ms = zip(*((p["at"], p["ms_per_vector"]) for p in points), strict=True)
                label = f"{name}, block of {block}: slope {slopes[0]['slope']:.2f}"
                ax.loglog(at, ms, line, marker=".", color=f"C{colour}", label=label)
    ax.set_xlabel({"hidden": "units"}.get(axis, axis))
    ax.set_xticks(at, at)
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=6)
axes[0].set_ylabel("ms per vector")
fig.suptitle(f"{settings['model']}")

# %%
# Memory
# ------
#
# One matvec with the flow operator in a process of its own: the growth of the process, the estimate
# of ``lin.memory_estimate()``, and the memory of states and vectors.

MIB = 2**20
print(f"{'':36}{'growth':>9}{'estimate':>10}{'states':>8}{'vectors':>9}   MiB")
for r in found["memory"]:
    problem = f"{r['model']} {r['hidden']}, {r['trials']} x {r['steps']}, {r['engine']}"
    if "dash" not in r:
        sizes = [r[k] / MIB for k in ("growth", "estimate", "trajectory", "vectors")]
        print(f"{problem:36}" + "{:9.0f}{:10.0f}{:8.0f}{:9.0f}".format(*sizes))
