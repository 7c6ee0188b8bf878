# SPDX-License-Identifier: Apache-2.0
"""``python -m bench [NAME ...] [--peers] [--json FILE] [--compare FILE]``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench import common


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Time vision_accel and its peers.")
    parser.add_argument(
        "names", nargs="*", help=f"which benchmarks (default all): {', '.join(common.names())}"
    )
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    parser.add_argument("--peers", action="store_true", help="also torch.compile, OpenVINO and ONNX Runtime")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for us and every peer")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="time spent on each implementation of a case"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--compare", type=Path, help="show the change against such a file")
    args = parser.parse_args()
    known = common.names()
    if unknown := [n for n in args.names if n not in known]:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(known)}")
    base = json.loads(args.compare.read_text()) if args.compare else None

    torch.set_num_threads(args.threads)
    env = common.environment()
    print("  ".join(f"{k}: {v}" for k, v in env.items() if k != "versions"))
    print("  ".join(f"{k} {v}" for k, v in env["versions"].items()), flush=True)
    report: dict[str, Any] = {"environment": env, "benchmarks": {}}
    for name in args.names or known:
        module = common.load(name)
        records = {}
        for case, kwargs in module.CASES.items():
            if args.case in case:
                records[case] = common.measure(module.make(**kwargs), peers=args.peers, seconds=args.seconds)
        report["benchmarks"][name] = records
        print(f"\n## {name}\n")
        if records:
            print(common.table(records), flush=True)
        if hasattr(module, "facts"):
            print("\n".join(f"{k}: {v}" for k, v in module.facts().items()), flush=True)
        if base is not None:
            print("\n".join(_changes(records, base["benchmarks"].get(name, {}))), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _changes(records: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """Per case: our time against the base file's, raw and relative to the first peer of each run.

    The second figure is the one to trust when the two runs saw a different machine or a different load.
    """
    lines = [""]
    for case, record in records.items():
        if case not in base:
            lines.append(f"{case}: not in the base file")
            continue
        new, old = record["results"], base[case]["results"]
        line = f"{case}: {old[common.OURS]['min_ms'] / new[common.OURS]['min_ms']:.2f}x as fast as the base"
        if peer := next((p for p in new if p != common.OURS and p in old), None):
            line += f", {new[peer]['ratio_min'] / old[peer]['ratio_min']:.2f}x relative to {peer}"
        lines.append(line)
    return lines


if __name__ == "__main__":
    sys.exit(main())
