"""A reward function written for TRL as a program of rlvr: command = ["python3", "reward_trl.py", "MODULE", "FUNCTION"]."""

import importlib
import json
import sys

sys.path.insert(0, ".")
answers, sys.stdout = sys.stdout, sys.stderr  # What the function prints is no answer.
function = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
for line in sys.stdin:
    asked = json.loads(line)
    columns = {name: [value] for name, value in asked["row"].items() if name not in ("prompt", "completion")}
    completion = [{"role": "assistant", "content": asked["completion"]}]
    [reward] = function(prompts=[asked["prompt"]], completions=[completion], **columns)
    print(json.dumps({"id": asked["id"], "reward": reward}), file=answers, flush=True)
