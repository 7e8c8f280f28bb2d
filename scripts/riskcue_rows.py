#!/usr/bin/env python3
"""Rows of MCP-RiskCue (arXiv 2511.05867) for rlvr, from a clone of the paper's repository. python3 and git, no packages.

    git clone https://github.com/PorUna-byte/MCP-RiskCue
    scripts/riskcue_rows.py MCP-RiskCue data/riskcue

test.jsonl is the authors' file. Their train.jsonl is not in the repository, so train.jsonl and valid.jsonl are put
together from what is: docs/riskcue.md says how, and what a score on them can be compared with.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

# The writers of the test pool's logs, and the rules of Environment/combine.py for what enters a pool.
TEST_WRITERS = {"gpt_4o", "deepseek_r1"}
MIN_CHARACTERS = 500
# Rows by label of the authors' training set, in the order of the system prompt (Figures/plot_syslog_statistic.py).
ROWS = {
    "Sensitive Data Exfiltration": 195,
    "Covert Channel Attack": 215,
    "Malicious Code Execution": 215,
    "Privilege Escalation": 187,
    "Persistence via Backdoor Implantation": 202,
    "Cache or Local State Pollution": 210,
    "Delayed or Timed Trigger Attacks": 208,
    "Denial-of-Service": 215,
    "Log Explosion Attacks": 205,
    "Safe": 569,
}
# The last commit that has dialogues on other queries than the test set's.
DIALOGUES = ("d8792cf21715ebe2a91e759f4bfbe79a6e7084a4", "Data/histories_env.jsonl")
CALL = "MCP tool-call message:\n"
RESULT = "Tool result & environment status:\n"


def read_rows(text, name):
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                sys.exit(f"{name}:{number}: {error}. Is the clone whole?")
    return rows


def read_file(path):
    if not path.is_file():
        sys.exit(f"{path}: there is no such file. The first argument is a clone of MCP-RiskCue")
    return path.read_text(encoding="utf-8")


def log_pairs(clone):
    """Pairs (writer, risk, risky log, its safe twin); None in the place of a log that the authors leave out."""
    names = [label.lower() for label in ROWS]

    def kept(text):
        enters = text and len(text) >= MIN_CHARACTERS and not any(name in text.lower() for name in names)
        return text if enters else None

    pairs = []
    for path in sorted(clone.glob("Environment/*_env_info.json")):
        writer = path.name.removesuffix("_env_info.json")
        if writer not in TEST_WRITERS:
            for entry in json.loads(read_file(path)):
                data = entry.get("enhanced_data", {})
                if data.get("risk_type") in ROWS:
                    pairs.append((writer, data["risk_type"], kept(data.get("observation")), kept(data.get("safe_twin"))))
    if not pairs:
        sys.exit(f"{clone}/Environment: no logs in *_env_info.json. The first argument is a clone of MCP-RiskCue")
    return pairs


def held_out(pairs):
    """For each writer and risk the last pair whose logs both stay: twins are never split."""
    last = {pair[:2]: pair for pair in pairs if pair[2] and pair[3]}
    valid = list(last.values())
    return [pair for pair in pairs if pair not in valid], valid


def by_label(pairs):
    logs = {label: [] for label in ROWS}
    for _, risk, risky, safe in pairs:
        for label, log in ((risk, risky), ("Safe", safe)):
            if log and log not in logs[label]:
                logs[label].append(log)
    return logs


def dialogues(clone, test_queries):
    """Recorded dialogues up to the first tool result, on queries that the test set does not have."""
    commit, path = DIALOGUES
    if (clone / path).is_file():
        text = read_file(clone / path)
    else:
        show = subprocess.run(["git", "-C", str(clone), "show", f"{commit}:{path}"], capture_output=True)
        if show.returncode != 0:
            why = show.stderr.decode(errors="replace").strip()
            sys.exit(f"{path} of commit {commit[:7]} cannot be read ({why}). Clone with the whole history")
        text = show.stdout.decode()
    found = []
    for row in read_rows(text, path):
        messages = [message["content"] for message in row["history"]]
        if row["query"] in test_queries or len(messages) < 5:
            continue
        system, query, call, result, answer = messages[:5]
        try:
            tool = json.loads(call.removeprefix(CALL))["tool"]
            payload = json.loads(result.removeprefix(RESULT))["Tool_result"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        normal = len(messages) == 5 and not answer.startswith(("Unsafe MCP Server", CALL.strip(), "{"))
        found.append(
            {
                "server_path": "/".join(row["server_path"].split("/")[-2:]),
                "tools": system.split("calling a tool.\n", 1)[-1].split("\n──", 1)[0].strip("\n"),
                "query": query,
                "call": call,
                "tool": tool,
                "payload": payload,
                "answer": answer.strip() if normal else None,
            }
        )
    return found


def row(dialogue, log, label, system):
    server = dialogue["server_path"].split("/")[-1].removesuffix(".py")
    refusal = {"ServerName": server, "ToolName": dialogue["tool"], "Reason": label}
    status = {"Tool_result": dialogue["payload"], "Environment_status": log}
    return {
        "prompt": [
            {"role": "system", "content": system[0] + dialogue["tools"] + "\n" + system[1]},
            {"role": "user", "content": dialogue["query"]},
            {"role": "assistant", "content": dialogue["call"]},
            {"role": "user", "content": RESULT + json.dumps(status, indent=2)},
        ],
        "chosen": dialogue["answer"]
        if label == "Safe"
        else "Unsafe MCP Server:" + json.dumps(refusal, separators=(", ", ":")),
        "security_type": [label],
        "metadata": {"server_path": dialogue["server_path"], "query": dialogue["query"]},
    }


def build(logs, counts, frames, system, draw):
    """`counts[label]` rows of each label: its logs dealt in turn, each in the next dialogue of a shuffle."""
    rows = []
    for label, count in counts.items():
        usable = [frame for frame in frames if label != "Safe" or frame["answer"]]
        draw.shuffle(usable)
        draw.shuffle(logs[label])
        for at in range(count if logs[label] else 0):
            rows.append(row(usable[at % len(usable)], logs[label][at % len(logs[label])], label, system))
    draw.shuffle(rows)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="a clone of MCP-RiskCue, with its history")
    parser.add_argument("out", type=Path, help="folder for train.jsonl, valid.jsonl and test.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    draw = random.Random(args.seed)
    test = read_file(args.clone / "Data/test.jsonl")
    test_rows = read_rows(test, "Data/test.jsonl")
    head, tail = test_rows[0]["prompt"][0]["content"].split("<tools>\n", 1)
    system = (head + "<tools>\n", "\n</tools>" + tail.split("\n</tools>", 1)[1])
    frames = dialogues(args.clone, {test_row["metadata"]["query"] for test_row in test_rows})
    draw.shuffle(frames)
    valid_frames, train_frames = frames[: len(frames) // 10], frames[len(frames) // 10 :]
    if not any(frame["answer"] for frame in valid_frames):
        sys.exit(f"{DIALOGUES[1]}: {len(frames)} usable dialogues, too few to put logs into")

    train_pairs, valid_pairs = held_out(log_pairs(args.clone))
    train_logs, valid_logs = by_label(train_pairs), by_label(valid_pairs)
    train = build(train_logs, ROWS, train_frames, system, draw)
    each_once = {label: len(logs) for label, logs in valid_logs.items()}
    valid = build(valid_logs, each_once, valid_frames, system, draw)

    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "test.jsonl").write_text(test, encoding="utf-8")
    for name, rows in (("train", train), ("valid", valid)):
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        (args.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for name, rows in (("train", train), ("valid", valid), ("test", test_rows)):
        safe = sum(r["security_type"][-1] == "Safe" for r in rows)
        logs = len({r["prompt"][-1]["content"].split('"Environment_status"', 1)[-1] for r in rows})
        print(f"{args.out}/{name}.jsonl  {len(rows)} rows, {safe} Safe, {logs} different logs")


if __name__ == "__main__":
    main()
