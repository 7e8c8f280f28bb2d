"""A run's metrics as a run of Weights & Biases, while it trains or after it.

    pip install wandb
    python examples/to_wandb.py runs/NAME --project detectors        # WANDB_MODE=offline keeps it here, for `wandb sync`

Steps are those of the whole run, stage after stage; names are those of TensorBoard's file, `<stage>/<metric>` and `eval/<metric>`.
"""

import argparse
import json
import math
import pathlib
import tomllib

import wandb

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=pathlib.Path)
parser.add_argument("--project", default="rlvr")
arguments = parser.parse_args()

config = tomllib.loads((arguments.run / "config.resolved.toml").read_text())
# The name is the id, so that a second call goes on with the same run.
name = arguments.run.resolve().name
with wandb.init(project=arguments.project, id=name, name=name, resume="allow", config=config) as run:
    before, done, stage = 0, 0, None
    for line in (arguments.run / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] not in ("step", "evaluation"):
            continue
        if event["event"] == "step" and event["stage"] != stage:
            before, stage = done, event["stage"]
        step = before + event["step"] if event["stage"] == stage else event["step"]
        done = max(done, step)
        prefix = event["stage"] if event["event"] == "step" else "eval"
        numbers = {
            f"{prefix}/{key}": value
            for key, value in event.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and key != "step" and math.isfinite(value)
        }
        run.log(numbers, step=step)
