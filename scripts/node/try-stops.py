#!/usr/bin/env python3
"""Runs of the small demo that are stopped, or find their disk full or their memory limited, and go on: what that loses.

    python3 scripts/node/try-stops.py target/release/rlvr [--stops 200] [--disks 50] [--gib 2] [--limited-gib 0.25] [--seed 1]

One line a kind; a run that does not come out bit for bit as an unbroken one ends the script. Full disks are tmpfs of a few
MiB, which takes root or `unshare -Urm python3 ...`; a limit of memory takes a control group that may be made here. What this
machine does not let happen is said and left out. Standard library only.
"""

import argparse, json, os, random, re, shutil, signal, statistics, subprocess, sys, tempfile, time
from pathlib import Path

SMALL = """device=cpu threads=2 data.synthetic.sft_rows=64 data.synthetic.grpo_rows=64 data.synthetic.valid_rows=8
sft.rows_per_step=4 sft.steps=4 grpo.steps=3 grpo.prompts_per_step=2 grpo.group_size=4 eval.every_steps=2
model.random.hidden_size=32 model.random.intermediate_size=48 model.random.attention_heads=2
model.random.key_value_heads=1 checkpoint.every_steps=1 grpo.kl_coef=0.1""".split()
PEAKS = ("memory.max_usage_in_bytes", "memory.peak")
# What a run says of its disk is no part of what comes out.
OF_THE_DISK = ("waits for room", "cannot be written now", "the run writes ")


def command(rlvr, root, name, sets=SMALL, more=()):
    words = [rlvr, "train", "demo", "--resume", "auto", *more]
    for one in [*sets, f"run.root={root}", f"run.name={name}"]:
        words += ["--set", one]
    return words


def left(run):
    """What a run leaves that is no matter of time or of its disk."""
    metrics = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "warning" and any(words in event["text"] for words in OF_THE_DISK):
            continue
        timed = ("time/", "memory/", "step_time", "tokens_per_second")
        metrics.append({key: value for key, value in event.items() if not key.startswith(timed)})
    files = {}
    for folder in ["model", "model-last", "samples"]:
        if (run / folder).is_dir():
            files |= {f"{folder}/{path.name}": path.read_bytes() for path in sorted((run / folder).iterdir())}
    return metrics, files


def same(run, want, what):
    metrics, files = left(run)
    if metrics != want[0]:
        sys.exit(f"{what}: other metrics than those of an unbroken run in {run}")
    for name in sorted(set(files) | set(want[1])):
        if files.get(name) != want[1].get(name):
            sys.exit(f"{what}: another {name} than that of an unbroken run in {run}")


def steps(run):
    path = run / "metrics.jsonl"
    return path.read_text().count('{"event":"step"') if path.exists() else 0


def started(words):
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(words, what):
    ended = subprocess.run(words, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{what}: ended with {ended.returncode}: {ended.stderr}")
    return ended.stderr


def unbroken(rlvr, root):
    begun = time.monotonic()
    finish(command(rlvr, root, "whole"), "an unbroken run")
    return left(Path(root, "whole")), time.monotonic() - begun


def stops(rlvr, times, draw):
    """SIGTERM at random instants."""
    took, lost = [], 0
    with tempfile.TemporaryDirectory() as root:
        want, whole = unbroken(rlvr, root)
        run = Path(root, "a")
        while len(took) < times:
            shutil.rmtree(run, ignore_errors=True)
            while True:
                process = started(command(rlvr, root, "a"))
                time.sleep(draw.uniform(0.05, whole))
                asked = time.monotonic()
                process.send_signal(signal.SIGTERM)
                said = process.communicate()[1]
                seconds = time.monotonic() - asked
                if process.returncode == 0:
                    break
                if process.returncode == -signal.SIGTERM:
                    continue  # Before it looked for signals.
                if process.returncode != 75:
                    sys.exit(f"SIGTERM: ended with {process.returncode}: {said}")
                took.append(seconds)
                lost += "lost" in said.splitlines()[-1]
                if len(took) >= times:
                    finish(command(rlvr, root, "a"), "after SIGTERM")
                    break
            same(run, want, f"after {len(took)} SIGTERM")
    took.sort()
    at = lambda share: took[min(len(took) - 1, int(share * len(took)))]
    print(f"{len(took)} SIGTERM: stops that lost a step {lost}, bits that differ 0; seconds to the end: "
          f"median {statistics.median(took):.2f}, p99 {at(0.99):.2f}, most {took[-1]:.2f} (an unbroken run takes {whole:.1f})")


def mount(folder, kib):
    words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder]
    return subprocess.run(words, capture_output=True, text=True)


def disks(rlvr, times, draw):
    """Disks that are full at a random size: the run is stopped while it waits for room, or there is room again."""
    with tempfile.TemporaryDirectory() as root:
        disk = Path(root, "disk")
        disk.mkdir()
        mounted = mount(disk, 1 << 20)
        if mounted.returncode:
            print(f"full disks: left out, nothing can be mounted here ({mounted.stderr.strip()})")
            return
        try:
            want, _ = unbroken(rlvr, disk)
            used = int(subprocess.run(["du", "-sk", disk], capture_output=True, text=True).stdout.split()[0])
        finally:
            subprocess.run(["umount", disk], check=True)
        full = waited = ended = 0
        while full < times:
            kib = draw.randrange(64, used)
            if mount(disk, kib).returncode:
                sys.exit("no tmpfs can be mounted any more")
            roomier = lambda: subprocess.run(["mount", "-o", f"remount,size={1 << 20}k", disk], check=True)
            try:
                words = command(rlvr, disk, "a", more=["--allow-over-budget"])
                process = started(words)
                said, stays = "", draw.random() < 0.5
                for line in process.stderr:
                    said += line
                    if "waits for room" in line:
                        waited += 1
                        if stays:
                            process.send_signal(signal.SIGTERM)
                        else:
                            roomier()
                process.wait()
                full += "waits for room" in said or process.returncode != 0
                if process.returncode not in (0, 75):
                    sys.exit(f"a disk of {kib} KiB: ended with {process.returncode}: {said}")
                ended += process.returncode == 75
                roomier()
                finish(command(rlvr, disk, "a", more=["--allow-over-budget"]), f"after a disk of {kib} KiB")
                same(disk / "a", want, f"a disk of {kib} KiB")
            finally:
                subprocess.run(["umount", disk], check=True)
    print(f"{full} full disks of 64 to {used} KiB: waited for room {waited} times, ended with 75 {ended}; runs lost 0, "
          "bits that differ 0")


def of_size(gib):
    """A model whose checkpoint has so many GiB: weights and two moments in f32, 24 layers of 12.4 h^2 numbers."""
    hidden = max(64, int((gib * 2**30 / 12 / 24 / 12.4) ** 0.5) // 64 * 64)
    others = ("model.random.", "checkpoint.", "sft.", "eval.", "data.synthetic.valid_rows")
    sets = [one for one in SMALL if not one.startswith(others)]
    return sets + [f"model.random.hidden_size={hidden}", f"model.random.intermediate_size={hidden * 28 // 10}",
                   f"model.random.attention_heads={hidden // 64}", f"model.random.key_value_heads={hidden // 64}",
                   "model.random.layers=24", "sft.rows_per_step=1", "checkpoint.every_minutes=0",
                   "data.synthetic.valid_rows=1", "eval.max_completion_tokens=1", 'stages=["sft"]']


def beside(rlvr, gib):
    """Steps with a checkpoint each, written in the background and in the foreground, in turns."""
    seconds = {True: [], False: []}
    with tempfile.TemporaryDirectory() as root:
        for turn in range(6):
            background = turn % 2 == 0
            sets = [*of_size(gib), "sft.steps=10", "checkpoint.every_steps=1", 'eval.keep_best="last"',
                    f"checkpoint.background={str(background).lower()}"]
            begun = time.monotonic()
            finish(command(rlvr, root, f"a-{turn}", sets), "a run with a checkpoint a step")
            seconds[background].append(time.monotonic() - begun)
            size = sum(path.stat().st_size for path in Path(root, f"a-{turn}").glob("checkpoints/step-9/*"))
            shutil.rmtree(Path(root, f"a-{turn}"))
    took = {kind: statistics.median(times) for kind, times in seconds.items()}
    print(f"10 steps with a checkpoint of {size / 2**30:.2f} GiB after each: {took[True]:.1f} s written in the background, "
          f"{took[False]:.1f} s in the foreground, {took[True] / took[False]:.2f} of it (medians of 3, in turns)")


def large(rlvr, gib):
    """A stop within a step of a large model."""
    sets = [*of_size(gib), "sft.steps=50"]
    with tempfile.TemporaryDirectory() as root:
        process = started(command(rlvr, root, "a", sets))
        run = Path(root, "a")
        while steps(run) < 2:
            time.sleep(0.2)
            if process.poll() is not None:
                sys.exit(f"the large model: ended with {process.returncode}: {process.stderr.read()}")
        # Within the third step.
        time.sleep(1)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
        seconds = time.monotonic() - asked
        if process.returncode != 75:
            sys.exit(f"the large model: ended with {process.returncode}: {said}")
        files = [path.stat().st_size for path in run.glob("checkpoints/step-*/*") if path.is_file()]
        lost = "lost" in said.splitlines()[-1]
        print(f"a stop with a checkpoint of {sum(files) / 2**30:.2f} GiB: {seconds:.1f} s from SIGTERM to the end, "
              f"{'a step' if lost else 'no step'} lost")


def group(mib):
    """A control group of this process's own with so much memory, or why there is none."""
    lines = [line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    of_memory = [path for _, names, path in lines if "memory" in names.split(",")]
    if of_memory:
        folder, limit = Path(f"/sys/fs/cgroup/memory{of_memory[0]}"), "memory.limit_in_bytes"
    else:
        folder, limit = Path("/sys/fs/cgroup" + next(path for number, _, path in lines if number == "0")), "memory.max"
    folder = (folder if folder.is_dir() else Path("/sys/fs/cgroup")) / f"rlvr-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(mib << 20))
    except OSError as error:
        return None, str(error)
    return folder, ""


def limited(rlvr, gib):
    """A run in a control group with too little memory, and in one with little more than it says that it takes."""
    sets = [*of_size(gib), "sft.steps=3", "checkpoint.every_steps=1"]

    def within(name, size):
        folder, why = group(size)
        if folder is None:
            print(f"limited memory: left out, no control group can be made here ({why})")
            return None, 0
        try:
            enter = f"echo $$ > {folder}/cgroup.procs && exec \"$@\""
            words = ["sh", "-c", enter, "sh", *command(rlvr, root, name, sets)]
            ended = subprocess.run(words, capture_output=True, text=True)
            peak = next((folder / name for name in PEAKS if (folder / name).exists()), None)
            return ended, int(peak.read_text()) >> 20 if peak else 0
        finally:
            time.sleep(0.2)
            folder.rmdir()

    with tempfile.TemporaryDirectory() as root:
        ended, _ = within("little", 70)
        if ended is None:
            return
        says = re.search(r"the run takes ([0-9.]+) GiB at its peak", ended.stderr)
        if ended.returncode != 2 or not says:
            sys.exit(f"in 70 MiB: ended with {ended.returncode}: {ended.stderr}")
        takes = float(says[1]) * 1024
        size = int(takes * 1.1) + 8
        finish(command(rlvr, root, "whole", sets), "an unbroken run")
        ended, peak = within("enough", size)
        if ended.returncode:
            sys.exit(f"in {size} MiB: ended with {ended.returncode}: {ended.stderr}")
        same(Path(root, "enough"), left(Path(root, "whole")), f"in {size} MiB")
        print(f"limited memory: in 70 MiB a run is refused before it loads anything (2), for it takes {takes:.0f} MiB; in {size} MiB it "
              f"is done, {peak} MiB at its peak, bits that differ 0")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rlvr")
    parser.add_argument("--stops", type=int, default=200)
    parser.add_argument("--disks", type=int, default=50)
    parser.add_argument("--gib", type=float, default=2, help="of the large checkpoint, and eight times those of one that is written beside steps; 0: none")
    parser.add_argument("--limited-gib", type=float, default=0.25, help="of a checkpoint in limited memory; 0: none")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rlvr, draw = os.path.abspath(given.rlvr), random.Random(given.seed)
    if given.stops:
        stops(rlvr, given.stops, draw)
    if given.disks:
        disks(rlvr, given.disks, draw)
    if given.gib:
        large(rlvr, given.gib)
        beside(rlvr, given.gib / 8)
    if given.limited_gib:
        limited(rlvr, given.limited_gib)


if __name__ == "__main__":
    main()
