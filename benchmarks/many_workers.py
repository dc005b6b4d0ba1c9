"""Table and figure of `benchmarks/workers.py --simulate`: throughput by number of workers, and what limits it."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from benchmarks import measuring
from benchmarks.simulated_workers import (
    AGENT,
    MOST_CONNECTIONS,
    N_SPLITS,
    WORKERS_A_HOST,
    Case,
    Stage,
    run_case,
    stage,
)
from train.store.sampler import SamplerByNumber
from train.study.search_space import Space, build_space, sample

NAME = "many_workers"
OWN_FILE = f"{NAME}.json"
WORKERS, ROUND_TRIPS_MS, TRIALS_S = (16, 64, 256), (0.3, 5.0, 50.0), (5.0, 30.0)
QUICK = (Case(2, 5.0, 1.0),)
# Other values of trial_s use the last window.
WINDOWS_S = {1.0: 2.0, 5.0: 20.0, 30.0: 30.0}
FINISHED = (100, 1_000, 4_000)  # numbers of finished trials for which the sampler is timed
TARGET = Case(64, 5.0, 30.0)
LEAST_SHARE = 0.9
AT_ITS_LIMIT = 0.85  # share of the time or of the cores above which the lock or the CPU is considered the limit
COLUMNS = {
    "workers": "workers", "rtt_ms": "round trip, ms", "trial_s": "trial, s",
    "share_ideal": "share of the ideal throughput",
    "trials_per_min": "trials/min", "limit": "limit", "lock_ms": "lock held, ms",
    "share_locked": "share of time locked",
    "wait_s": "wait for the lock, s", "round_trips": "round trips per trial",
    "worker_cpu_s": "worker's CPU per trial, s", "server_cpu_s": "server's CPU per trial, s",
    "share_cpu": "CPU of both cores", "opening_s": "time until all have started, s", "connections": "connections",
    "server_mib": "server memory, MiB", "worker_mib": "private memory per worker, MiB",
    "torch_gib": "all workers with torch, GiB",
}  # fmt: skip


def simulate(args: argparse.Namespace) -> dict[str, Any]:
    """Run every case that is not in the result file yet."""
    logging.getLogger("train").setLevel(logging.ERROR)
    cases = QUICK if args.quick else [Case(w, r, t) for w in WORKERS for t in TRIALS_S for r in ROUND_TRIPS_MS]
    jobs = [(case.workers, case.round_trip_ms, case.trial_s) for case in cases]
    args.processes = 1
    with stage() as set_up:
        timed = {n: sampling_s(space_of(set_up), n) for n in (FINISHED[:1] if args.quick else FINISHED)}
        torch_mib = memory_with_torch_mib()

        def work(*job: Any) -> dict[str, Any]:
            case = Case(*job)
            return run_case(set_up, case, WINDOWS_S[case.trial_s])

        rows = measuring.resumed(args, jobs, work, lambda _: f"{AGENT} {N_SPLITS} {WINDOWS_S}")
    rows = [row | {"limit": limit_of(row), "torch_gib": row["workers"] * torch_mib / 1024.0} for row in rows]
    found = [row["share_ideal"] for row in rows if Case(row["workers"], row["rtt_ms"], row["trial_s"]) == TARGET]
    what = f"share of the ideal throughput, {TARGET.workers} workers, {TARGET.trial_s:g} s, {TARGET.round_trip_ms:g} ms"
    checks = [] if args.quick else [measuring.check(what, found[0], least=LEAST_SHARE)]
    notes = notes_of(rows, timed, torch_mib)
    return measuring.section(args, about(), COLUMNS, rows=rows, checks=checks, notes=notes, sampling_s=timed)


def about() -> str:
    """Return the description of the measurement for the result file."""
    return (
        f"Everything is real except the training, which is replaced by a wait. Workers are processes that open the "
        f"study, take trials of {N_SPLITS} splits under its lock, sample the settings of {AGENT}, prune, send "
        "heartbeats, write the files of each split and send them to an artifact store (a folder). "
        f"{WORKERS_A_HOST} workers share a host name. PostgreSQL 15 runs on the same machine, with fsync, behind a "
        "process that delays every byte. The ideal throughput is the number of workers divided by the duration of a "
        "trial. CPU time includes workers, server and network. The lock or the CPU is called the limit if it is busy "
        f"for more than {AT_ITS_LIMIT:.0%} of the time."
    )


def limit_of(row: Mapping[str, Any]) -> str:
    """Return what limits the throughput of a case, or "" if nothing does."""
    limits = {"lock": row["share_locked"], "CPU": row["share_cpu"]}
    return " and ".join(name for name, share in limits.items() if share >= AT_ITS_LIMIT)


def notes_of(rows: Sequence[Mapping[str, Any]], timed: Mapping[int, float], torch_mib: float) -> list[str]:
    """Return the text below the table."""
    most = max(rows, key=lambda row: row["connections"])
    per_connection = most["server_mib"] / most["connections"]
    sampling = ", ".join(f"{1e3 * seconds:.0f} ms with {n:,}" for n, seconds in timed.items())
    round_trips = max(abs(row["measured_rtt_ms"] - row["rtt_ms"]) for row in rows if row["share_cpu"] < AT_ITS_LIMIT)
    ended = sum(row["complete"] for row in rows)
    lost = sum(row["pruned"] + row["fail"] for row in rows)
    return [
        f"Connections: {most['connections'] / most['workers']:.0f} per worker, {per_connection:.1f} MiB of the "
        f"server's memory each. `max_connections` was {MOST_CONNECTIONS:,}; the default is 100.",
        "",
        "Memory: simulated workers are forked after the imports and share the memory of the imported modules. A "
        f"worker that is started separately has {torch_mib:.0f} MiB of private memory after the imports, before "
        "networks and rollouts.",
        "",
        f"Sampler: sampling the settings of a trial takes {sampling} finished trials (the worker's CPU time).",
        "",
        f"Check: {ended:,} trials completed, and {lost} were pruned or failed. If the CPU is not the limit, the "
        f"measured round trip differs from the nominal one by at most {round_trips:.1f} ms.",
    ]


def space_of(set_up: Stage) -> Space:
    """Return the search space of the study."""
    return build_space(longest_episode_bars=min(d.longest_episode_bars for d in set_up.data), agent=AGENT)


def sampling_s(space: Space, n_finished: int) -> float:
    """Return the CPU seconds to sample a trial's settings after `n_finished` trials, as the median of five."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(n_finished):
        trial = study.ask()
        sample(space, trial)
        study.tell(trial, float(number * 7919 % 1009))
    study.sampler, took_s = SamplerByNumber(0), []
    for _ in range(5):
        began_s = time.process_time()
        trial = study.ask()
        sample(space, trial)
        took_s.append(time.process_time() - began_s)
        study.tell(trial, 0.0)
    return sorted(took_s)[2]


def memory_with_torch_mib() -> float:
    """Return the private memory of a worker process after its imports, in MiB."""
    code = "import psutil, train.worker_program; print(psutil.Process().memory_full_info().uss)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=measuring.REPO)
    return int(done.stdout.split()[-1]) / 2**20


# ------------------------------------------------------------------------------------------------------------- picture
# The palette of Okabe and Ito, which color-blind readers can distinguish. Markers differ too.
STYLES = {0.3: ("#0072B2", "o"), 5.0: ("#D55E00", "s"), 50.0: ("#009E73", "^")}


def draw(part: Mapping[str, Any], path: Path) -> None:
    """Draw the share of the ideal throughput by number of workers, with one panel per trial duration."""
    made = measuring.figure((12.5, 6.0), part)
    for axes, trial_s in zip(made.subplots(1, 2, sharey=True), TRIALS_S, strict=True):
        for rtt_ms, (colour, marker) in STYLES.items():
            rows = [row for row in part["rows"] if (row["trial_s"], row["rtt_ms"]) == (trial_s, rtt_ms)]
            places, shares = [row["workers"] for row in rows], [100.0 * row["share_ideal"] for row in rows]
            axes.plot(places, shares, marker=marker, ms=9, lw=2, color=colour, label=f"{rtt_ms:g} ms")
            limited = [(w, s) for w, s, row in zip(places, shares, rows, strict=True) if row["limit"]]
            axes.plot(
                *zip(*limited, strict=True) if limited else ([], []), marker, ms=9, mew=2, mec=colour, mfc="white"
            )
        axes.axhline(100.0 * LEAST_SHARE, color="#555555", lw=1, ls="--")
        axes.set_xscale("log", base=2)
        axes.set_xticks(WORKERS, [str(n) for n in WORKERS])
        axes.minorticks_off()
        axes.set(xlabel="workers", ylim=(0.0, 105.0), xlim=(WORKERS[0] / 1.25, WORKERS[-1] * 1.25))
        axes.set_title(f"trials of {trial_s:g} s", fontsize=15)
        axes.grid(axis="y", alpha=0.3)
    made.axes[0].set_ylabel("share of the ideal throughput, %")
    title = f"round trip to the server (dashed: {LEAST_SHARE:.0%}; hollow: the lock or the CPU is the limit)"
    handles, labels = made.axes[0].get_legend_handles_labels()
    made.legend(handles, labels, title=title, loc="outside lower center", ncols=3, frameon=False, fontsize=14)
    made.savefig(path, dpi=110)
