"""Time attention on the CPU: in-process peers and external commands, interleaved.

Method. Every system gets the same deterministic data, rounded to the dtype, and its
result is checked against float64 attention on a sample of rows and heads before it is
timed; a wrong result is not timed. Systems take turns, `--budget` seconds each a round,
so that a noisy neighbour hits all of them alike. The figure is the median over all calls
of all rounds; the minimum is printed beside it. Compare systems within one run only.

One JSON line is printed for each (system, case, dtype, threads):

    {"system", "case", "dtype", "threads", "ms", "min_ms", "n", "gflops", "gbps",
     "best_gflops", "best_gbps", "err", "err_tolerance", "load"}

gflops is 4*B*HQ*SQ*SKV*D (halved for causal) / median; gbps is the bytes of K and V, read
once, / median; best_* are the same over the minimum; err is the largest absolute error on
the sample and err_tolerance what it may be; load is the machine's load average.

External commands, `--ext NAME=COMMAND`, are run once a round as

    COMMAND --b B --hq HQ --hkv HKV --sq SQ --skv SKV --d D --causal 0|1
            --dtype f32|bf16|f16 --threads N --budget SECONDS

and print one JSON line, {"samples_ms": [..], "head": [first 8 outputs of query row 0,
head 0]} or {"skip": "why"}. Their data are q, k, v = fill(.., seed 1, 2, 3) of
problem.py, indexed in BSHD order and rounded to the dtype; softmax scale 1/sqrt(D);
causal is bottom-right aligned.
"""

import argparse
import importlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from problem import CASES, DTYPES, Case, Reference, make_data
from systems import MODULES, SYSTEMS

sys.path.append(str(Path(__file__).resolve().parent.parent))
from schedule import Schedule  # noqa: E402

EXTERNAL_TIMEOUT_SECONDS = 300


class Wrong(Exception):
    """A system's result is too far from the reference."""


def check(error: float, reference: Reference, dtype: str) -> float:
    """Return `error` if it is within tolerance, else raise `Wrong`."""
    if not reference.accepts(error, dtype):
        raise Wrong(
            f"wrong result: error {error:.2e}, largest value {reference.largest:.2e}"
        )
    return error


def time_calls(system, budget: float) -> list[float]:
    """Milliseconds of each call, for `budget` seconds and at least one call."""
    samples = []
    end = time.perf_counter() + budget
    while not samples or time.perf_counter() < end:
        start = time.perf_counter()
        system()
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


def parse_answer(line: str) -> dict:
    """The answer of an external command; one that breaks the protocol counts as skipped."""
    try:
        answer = json.loads(line)
    except json.JSONDecodeError as reason:
        return {"skip": f"the answer is not JSON: {reason}"}
    missing = {"samples_ms", "head"} - answer.keys()
    if missing and "skip" not in answer:
        return {"skip": f"the answer lacks {' and '.join(sorted(missing))}"}
    return answer


def run_external(
    command: str, case: Case, dtype: str, threads: int, budget: float
) -> dict:
    """Run an external command on one case and return its answer."""
    options = {
        "b": case.batch,
        "hq": case.query_heads,
        "hkv": case.kv_heads,
        "sq": case.query_length,
        "skv": case.kv_length,
        "d": case.head_dim,
        "causal": int(case.causal),
        "dtype": dtype,
        "threads": threads,
        "budget": budget,
    }
    words = shlex.split(command)
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=EXTERNAL_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"skip": f"no answer in {EXTERNAL_TIMEOUT_SECONDS} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return parse_answer(line)
    return {"skip": (done.stderr.strip() or "no output")[-120:]}


class Comparison:
    """All systems on one case, dtype and thread count."""

    def __init__(
        self, case_name: str, dtype: str, threads: int, args: argparse.Namespace
    ) -> None:
        self.case_name, self.case = case_name, CASES[case_name]
        self.dtype, self.threads = dtype, threads
        self.args = args
        self.samples: dict[str, list[float]] = {}
        self.errors: dict[str, float] = {}
        self.err_tolerance = 0.0

    def note(self, system: str, message: str) -> None:
        """Say on stderr why a system is left out."""
        print(
            f"# {system} {self.case_name} {self.dtype} t{self.threads}: {message}",
            file=sys.stderr,
        )

    def run(self, data: tuple, reference: Reference) -> None:
        """Check every system, then time them round by round."""
        self.err_tolerance = reference.tolerance(self.dtype)
        systems = {}
        for name in self.args.systems:
            # A peer may be missing, refuse the case or fail in a way of its own: that must
            # not stop the others.
            try:
                system = SYSTEMS[name](self.case, self.dtype, self.threads, data)
                error = check(
                    reference.error(system.rows(system())), reference, self.dtype
                )
            except Wrong as wrong:
                self.note(name, str(wrong))
            except Exception as reason:  # noqa: BLE001
                if self.args.verbose:
                    self.note(name, f"skipped: {str(reason)[:160]}")
            else:
                systems[name] = system
                self.errors[name + self.args.suffix] = error
        for _ in range(self.args.rounds):
            for name, system in systems.items():
                self.samples.setdefault(name + self.args.suffix, []).extend(
                    time_calls(system, self.args.budget)
                )
            for name, command in self.args.ext.items():
                self.run_external_round(name, command, reference)

    def run_external_round(self, name: str, command: str, reference: Reference) -> None:
        """One round of one external command."""
        answer = run_external(
            command, self.case, self.dtype, self.threads, self.args.budget
        )
        if "skip" in answer:
            if self.args.verbose:
                self.note(name, f"skipped: {answer['skip']}")
            return
        try:
            self.errors[name] = check(
                reference.head_error(answer["head"]), reference, self.dtype
            )
        except Wrong as wrong:
            self.note(name, str(wrong))
            return
        self.samples.setdefault(name, []).extend(answer["samples_ms"])

    def records(self) -> list[dict]:
        """One record for each system that was timed."""
        flops, kv_bytes = self.case.flops, self.case.kv_bytes(self.dtype)
        records = []
        for system, samples in self.samples.items():
            median, best = statistics.median(samples), min(samples)
            records.append(
                {
                    "system": system,
                    "case": self.case_name,
                    "dtype": self.dtype,
                    "threads": self.threads,
                    "ms": round(median, 4),
                    "min_ms": round(best, 4),
                    "n": len(samples),
                    "gflops": round(flops / median / 1e6, 1),
                    "gbps": round(kv_bytes / median / 1e6, 2),
                    "best_gflops": round(flops / best / 1e6, 1),
                    "best_gbps": round(kv_bytes / best / 1e6, 2),
                    "err": float(f"{self.errors[system]:.2e}"),
                    "err_tolerance": float(f"{self.err_tolerance:.2e}"),
                    "load": round(os.getloadavg()[0], 1),
                }
            )
        return records


def list_systems() -> None:
    """Print one JSON line for each in-process system: why it is absent, or null."""
    for system in SYSTEMS:
        reason = None
        for module in MODULES[system]:
            # A broken installation may fail in any way of its own.
            try:
                importlib.import_module(module)
            except Exception as error:  # noqa: BLE001
                reason = str(error).splitlines()[0][:160] if str(error) else repr(error)
                break
        print(json.dumps({"system": system, "absent": reason}))


def names_from(choices: dict) -> object:
    """An argparse type: a comma-separated list of `choices`, or "all"."""

    def parse(text: str) -> list[str]:
        names = (
            list(choices)
            if text == "all"
            else [name for name in text.split(",") if name]
        )
        unknown = [name for name in names if name not in choices]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"unknown {', '.join(unknown)}; there are {', '.join(choices)}"
            )
        return names

    return parse


def external(text: str) -> tuple[str, str]:
    """An argparse type: NAME=COMMAND."""
    name, separator, command = text.partition("=")
    if not (name and separator and command):
        raise argparse.ArgumentTypeError("expected NAME=COMMAND")
    return name, command


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--systems",
        type=names_from(SYSTEMS),
        default="all",
        help=f'in-process systems, comma-separated, "all" or "" ({", ".join(SYSTEMS)})',
    )
    parser.add_argument(
        "--ext",
        type=external,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="an external system; may be repeated",
    )
    parser.add_argument(
        "--cases",
        type=names_from(CASES),
        default="all",
        help=f'"all" or some of {", ".join(CASES)}',
    )
    parser.add_argument(
        "--dtypes",
        type=names_from(DTYPES),
        default="all",
        help='"all" or some of f32, bf16, f16',
    )
    parser.add_argument(
        "--threads",
        type=lambda text: [int(count) for count in text.split(",")],
        default="1,2",
        help="thread counts, comma-separated (default 1,2)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=0.6,
        help="seconds for each system in each round (default 0.6)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument(
        "--time-limit", type=float, help="seconds for all cases: cuts the budgets"
    )
    parser.add_argument(
        "--suffix",
        default="",
        help="appended to the names of the in-process systems, such as _mklfix",
    )
    parser.add_argument("--out", metavar="FILE", help="also append the lines to FILE")
    parser.add_argument(
        "--list",
        action="store_true",
        help="only say which in-process systems are absent, and why",
    )
    parser.add_argument(
        "--quick", action="store_true", help="the two smallest cases only"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="say on stderr what was skipped, and why"
    )
    args = parser.parse_args()
    args.ext = dict(args.ext)
    if args.quick:
        args.cases = [name for name in args.cases if name in ("p512_d64", "dec4k")]
    return args


def main() -> None:
    """Run every case, dtype and thread count that was asked for."""
    args = parse_args()
    if args.list:
        list_systems()
        return
    todo = [
        (case_name, dtype, threads)
        for case_name in args.cases
        for dtype in args.dtypes
        for threads in args.threads
    ]
    turns = args.rounds * (len(args.systems) + len(args.ext))
    made = None
    for (case_name, dtype, threads), budget in Schedule(
        args.budget, turns, args.time_limit
    ).cases(todo):
        if made != (case_name, dtype):
            made = (case_name, dtype)
            data = make_data(CASES[case_name], dtype)
            reference = Reference(CASES[case_name], data)
        options = argparse.Namespace(**{**vars(args), "budget": budget})
        comparison = Comparison(case_name, dtype, threads, options)
        comparison.run(data, reference)
        lines = [json.dumps(record) for record in comparison.records()]
        for line in lines:
            print(line, flush=True)
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)


if __name__ == "__main__":
    main()
