"""Time attention on one NVIDIA GPU: in-process peers and external commands, in turns.

Method. Every system gets the same deterministic data and its result is checked against float64
attention on a sample of rows and heads before it is timed; a wrong result is not timed. One call is
captured in a CUDA graph; before each replay 256 MB are written, so that the second-level cache
holds nothing of use; CUDA events give the time. Systems take turns, `--budget` seconds each a round,
in another order each round, since a hot card is slower. For the same reason the card idles 0.08 s
before each turn (`--mode cool`), or makes the calls of the turn back to back for 0.25 s untimed, and is then
timed for 0.06 s at most (`--mode hot`). The figure is the median over all rounds. Compare systems within one run only.

`--time-limit` cuts the budgets, to ten calls a turn if need be, so that all cases fit.

One JSON line is printed for each (system, case, dtype):

    {"system", "case", "dtype", "ms", "min_ms", "spread", "n", "tflops" or "tbps", "err",
     "err_tolerance", "method", "mode"}

tflops is 4*B*HQ*SQ*SKV*D (halved for causal, the visible share of windows) / median; tbps is the bytes of K and V, read once,
/ median; err is the largest absolute error on the sample; spread is the distance of the quartiles
by the median.

External commands, `--ext NAME=COMMAND`, are run once a round as

    COMMAND --b B --hq HQ --hkv HKV --sq SQ --skv SKV --d D --causal 0|1
            --dtype bf16|f16|f32 --budget SECONDS --mode cool|hot [--form FORM]

where the form says what --causal cannot (`Case` in `problem.py`), and print one JSON line, {"samples_ms": [..], "head": [first 8 outputs of query row 0, head 0]} or
{"skip": "why"}. Their data are those of `problem.py`.
"""

import argparse
import importlib
import json
import random
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
from schedule import Schedule  # noqa: E402

FLUSH_BYTES = 256 << 20
FEWEST_REPLAYS = 10
IDLE_SECONDS, HEAT_SECONDS, STAYS_HOT_SECONDS = 0.08, 0.25, 0.06
CALLS_AHEAD = 4
EXTERNAL_TIMEOUT_SECONDS = 300


class Skip(Exception):
    """A system cannot be timed on a case; says why."""


def list_systems() -> None:
    """Print one JSON line for each in-process system: why it is absent, or null."""
    try:
        import torch
        from systems import SYSTEMS
    except ImportError as error:
        print(json.dumps({"system": "torch", "absent": str(error)}))
        return
    for name, system in SYSTEMS.items():
        reason = None if torch.cuda.is_available() else "torch finds no CUDA device"
        for module in system.modules if reason is None else ():
            # A broken installation may fail in any way of its own.
            try:
                importlib.import_module(module)
            except Exception as error:  # noqa: BLE001
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
                break
        print(json.dumps({"system": name, "absent": reason}))


class Clock:
    """CUDA events around replays of a graph, or the host's clock."""

    def __init__(self, mode: str) -> None:
        import torch

        self.torch, self.mode = torch, mode
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in "be")

    def capture(self, system) -> tuple:
        """A call to time, and how it will be timed."""
        torch = self.torch
        if not system.is_capturable:
            return system, "host clock, cold L2"
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                system()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                system()
        except RuntimeError:
            torch.cuda.synchronize()
            return system, "device clock, no graph, cold L2"
        return graph.replay, "device clock, cold L2"

    def once(self, call, by_host: bool) -> float:
        """Milliseconds of one call, the cache overwritten before."""
        torch = self.torch
        self.flush.zero_()
        if by_host:
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        self.begin.record()
        call()
        self.end.record()
        torch.cuda.synchronize()
        return self.begin.elapsed_time(self.end)

    def heat(self, call) -> None:
        """Make the calls back to back; the host is never far ahead."""
        end = time.perf_counter() + HEAT_SECONDS
        while time.perf_counter() < end:
            for _ in range(CALLS_AHEAD):
                call()
            self.begin.synchronize()
            self.begin.record()

    def samples(self, call, method: str, budget: float) -> list[float]:
        """Milliseconds of each call, for `budget` seconds and at least a few."""
        by_host, samples = method.startswith("host"), []
        if self.mode == "hot":
            self.heat(call)
            budget = min(budget, STAYS_HOT_SECONDS)
        else:
            time.sleep(IDLE_SECONDS)
        end = time.perf_counter() + budget
        while len(samples) < FEWEST_REPLAYS or time.perf_counter() < end:
            samples.append(self.once(call, by_host))
        return samples


def run_external(command: str, case, dtype: str, budget: float, mode: str) -> dict:
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
        "budget": budget,
        "mode": mode,
    }
    if case.form not in ("full", "causal"):
        options["form"] = case.form
    words = shlex.split(command)
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=EXTERNAL_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Skip(f"no answer in {EXTERNAL_TIMEOUT_SECONDS} s") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise Skip((done.stderr.strip() or "no output")[-160:])
    try:
        answer = json.loads(lines[-1])
    except json.JSONDecodeError as error:
        raise Skip(f"the answer is not JSON: {error}") from None
    if "skip" in answer:
        raise Skip(answer["skip"])
    missing = {"samples_ms", "head"} - answer.keys()
    if missing:
        raise Skip(f"the answer lacks {' and '.join(sorted(missing))}")
    return answer


class Comparison:
    """All systems on one case and dtype."""

    def __init__(
        self, case, dtype: str, args: argparse.Namespace, clock: Clock, budget: float
    ) -> None:
        self.case, self.dtype, self.args, self.clock = case, dtype, args, clock
        self.budget = budget
        self.samples: dict[str, list[float]] = {}
        self.errors: dict[str, float] = {}
        self.methods: dict[str, str] = {}

    def run(self) -> None:
        """Check every system, then time them round by round."""
        from problem import Data, Reference

        data = Data.of(self.case, self.dtype)
        self.reference = Reference(self.case, data, self.dtype)
        calls = self.calls(data)
        rounds = [*calls, *self.args.ext]
        for _ in range(self.args.rounds):
            random.shuffle(rounds)
            for name in list(rounds):
                try:
                    if name in calls:
                        call, method = calls[name]
                        samples = self.clock.samples(call, method, self.budget)
                    else:
                        samples = self.external(name)
                except Skip as reason:
                    self.note(name, str(reason))
                    rounds.remove(name)
                else:
                    self.samples.setdefault(name, []).extend(samples)

    def calls(self, data) -> dict[str, tuple]:
        """The systems that give the right result, ready to be timed."""
        from systems import SYSTEMS

        calls = {}
        for name in self.args.systems:
            if not SYSTEMS[name].takes(self.case):
                continue
            # A peer may be missing, refuse the case or fail in a way of its own: that must not
            # stop the others.
            try:
                system = SYSTEMS[name](self.case, data)
                self.check(name, self.reference.error(system.rows(system())))
                calls[name] = self.clock.capture(system)
                self.methods[name] = calls[name][1]
            except Exception as error:  # noqa: BLE001
                self.note(name, f"{type(error).__name__}: {error}".splitlines()[0])
                self.require_device(name)
        return calls

    def require_device(self, name: str) -> None:
        """Stop where a system has left the device unusable for this process, and say which one."""
        try:
            self.clock.torch.cuda.synchronize()
        except RuntimeError as error:
            others = ",".join(other for other in self.args.systems if other != name)
            sys.exit(f"{name} broke the device at {self.case.name} ({error}); without it: --systems {others}")

    def external(self, name: str) -> list[float]:
        """One round of an external command."""
        answer = run_external(
            self.args.ext[name], self.case, self.dtype, self.budget, self.args.mode
        )
        self.check(name, self.reference.head_error(answer["head"]))
        self.methods[name] = "its own clock"
        return answer["samples_ms"]

    def check(self, name: str, error: float) -> None:
        """Refuse a result that is too far from the reference; a NaN is."""
        if not error <= self.reference.tolerance:
            raise Skip(f"wrong result: error {error:.2e}, {self.reference.tolerance:.2e} allowed")
        self.errors[name] = error

    def note(self, name: str, message: str) -> None:
        """Say on stderr why a system is left out."""
        print(f"# {name} {self.case.name} {self.dtype}: {message[:200]}", file=sys.stderr)

    def records(self) -> list[dict]:
        """One record for each system that was timed."""
        records = []
        for name, samples in self.samples.items():
            median = statistics.median(samples)
            quartiles = statistics.quantiles(samples, n=4)
            if self.case.is_decode:
                rate = {"tbps": round(self.case.kv_bytes(self.dtype) / median / 1e9, 4)}
            else:
                rate = {"tflops": round(self.case.flops / median / 1e9, 1)}
            records.append(
                {
                    "system": name,
                    "case": self.case.name,
                    "dtype": self.dtype,
                    "ms": round(median, 5),
                    **rate,
                    "min_ms": round(min(samples), 5),
                    "spread": round((quartiles[2] - quartiles[0]) / median, 4),
                    "n": len(samples),
                    "err": float(f"{self.errors[name]:.2e}"),
                    "err_tolerance": float(f"{self.reference.tolerance:.2e}"),
                    "method": self.methods[name],
                    "mode": self.args.mode,
                }
            )
        return records


def external(text: str) -> tuple[str, str]:
    """An argparse type: NAME=COMMAND."""
    name, separator, command = text.partition("=")
    if not (name and separator and command):
        raise argparse.ArgumentTypeError("expected NAME=COMMAND")
    return name, command


def names(text: str) -> list[str]:
    """An argparse type: names, comma-separated."""
    return [name for name in text.split(",") if name]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="only say which systems are absent")
    parser.add_argument("--systems", type=names, help="comma-separated (default: all)")
    parser.add_argument(
        "--ext",
        type=external,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="an external system; may be repeated",
    )
    parser.add_argument(
        "--groups",
        type=names,
        help="of `omniflash bench`: prefill, decode, paged, masks, ragged (default: all)",
    )
    parser.add_argument("--cases", default="", help="a regular expression on case names")
    parser.add_argument("--dtypes", type=names, default=["bf16"], help="of bf16, f16, f32")
    parser.add_argument(
        "--budget", type=float, default=0.25, help="seconds for each system in each round"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument(
        "--mode",
        choices=("cool", "hot"),
        default="cool",
        help="whether the card idles or works before each turn",
    )
    parser.add_argument("--time-limit", type=float, help="seconds for all cases together")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    args = parser.parse_args()
    args.ext = dict(args.ext)
    return args


def main() -> None:
    """Run every case and dtype that was asked for."""
    args = parse_args()
    if args.list:
        list_systems()
        return
    from problem import DTYPES, cases, selected
    from systems import SYSTEMS

    args.systems = list(SYSTEMS) if args.systems is None else args.systems
    for kind, found, known in (("system", args.systems, SYSTEMS), ("dtype", args.dtypes, DTYPES)):
        unknown = [name for name in found if name not in known]
        if unknown:
            sys.exit(f"unknown {kind} {', '.join(unknown)}; there are {', '.join(known)}")
    random.seed(0)
    clock = Clock(args.mode)
    chosen = [
        case
        for case in selected(cases(args.quick, args.groups), args.cases)
        if args.ext or any(SYSTEMS[name].takes(case) for name in args.systems)
    ]
    todo = [(dtype, case) for dtype in args.dtypes for case in chosen]
    turns = args.rounds * (len(args.systems) + len(args.ext))
    for (dtype, case), budget in Schedule(args.budget, turns, args.time_limit).cases(todo):
        comparison = Comparison(case, dtype, args, clock, budget)
        comparison.run()
        for record in comparison.records():
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
