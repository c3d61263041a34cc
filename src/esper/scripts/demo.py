"""`esper demo`: grows one network on real digits before your eyes, and says whether it paid."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from esper.leyline.config import encode
from esper.leyline.telemetry import SCHEMA_VERSION
from esper.nissa.progress import Progress
from esper.nissa.run_folder import RunFolder
from esper.scripts.arms import ArmResult, joint_digest, make_arm, run_arm
from esper.scripts.cli import warn
from esper.scripts.config import EsperConfig
from esper.scripts.pictures import lanes
from esper.scripts.runner import prepare
from esper.scripts.tables import comparison_table, verdicts
from esper.scripts.train import add_common, configure

GROWN, NEVER, SCRATCH = "heuristic", "static", "scratch"


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser("demo", help="grow a small network on real digits, about half a minute")
    parser.add_argument("--seed", type=int, metavar="N", help="another network, another split of the digits")
    add_common(parser)
    parser.set_defaults(run_command=command, preset="demo")


def command(args: argparse.Namespace) -> int:
    config = configure(args)
    with closing(prepare(config)) as prepared:  # what is wrong with the settings is said before a folder is made
        warn(prepared.warnings, args.quiet)
    with RunFolder.create(Path(config.run.root), "demo") as folder:
        folder.write_manifest({"schema_version": SCHEMA_VERSION, "config": encode(config)})
        seed, results = config.run.seed, []
        grown = make_arm(GROWN, seed, config, folder.path)
        with Progress(quiet=args.quiet or args.no_progress) as progress:
            result, finished = run_arm(grown, progress)
            results.append(result)
            results += _rivals(config, result, folder.path, progress)
        if not args.quiet:
            metric = finished.metric
            print(f"A host of {result.host_params} parameters, grown on scikit-learn's digits under a rule.")
            print("One column is one epoch, one row a slot:\n")
            print("\n".join(lanes(finished.rounds[-1].rollout, 0)) + "\n")
            print(comparison_table(results, metric) + "\n")
            print("\n".join(verdicts(results, metric)))
            print("\nMore seeds and rivals: esper compare --task digit_pairs --seeds 5. What happened when:")
            print(f"{grown.folder / 'ev'}. The grown network: {grown.folder / 'checkpoints'}.\n")
    print(f"run: {folder.path}")
    print(f"digest: sha256:{joint_digest(results)}")
    return 0


def _rivals(config: EsperConfig, grown: ArmResult, top: Path, progress: Progress) -> list[ArmResult]:
    """The same host never grown, and the grown one's topology from scratch."""
    static = replace(config, run=replace(config.run, controller=NEVER))
    scratch = replace(static, run=replace(static.run, topology_from=grown.run))
    arms = [make_arm(NEVER, grown.seed, static, top), make_arm(SCRATCH, grown.seed, scratch, top)]
    return [run_arm(arm, progress)[0] for arm in arms]
