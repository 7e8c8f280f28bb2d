#!/usr/bin/env python3
"""Plots seconds a GRPO step over the group size, from `rlvr bench step --json` lines, as SVG. Standard library only.

    scripts/plot_group_cost.py benches/results/cpu-groups.jsonl docs/img/group-cost.svg
"""
import json
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 64, 24, 56, 48
MEASURED, COPIES, INK, GRID = "#0b6e99", "#b5542b", "#333333", "#dddddd"


def main(source, target):
    with open(source) as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    # A group of one has no advantage, so its step has no update.
    rows = sorted((row for row in rows if row["group_size"] > 1), key=lambda row: row["group_size"])
    groups = [row["group_size"] for row in rows]
    seconds = [row["mean_step_seconds"] for row in rows]
    assert groups[0] == 2, "the smallest group is G = 2: copies are measured by it"
    top = 1.15 * max(max(seconds), seconds[0] * groups[-1] / 4)

    def x(group):
        return LEFT + (WIDTH - LEFT - RIGHT) * (group - groups[0]) / (groups[-1] - groups[0])

    def y(value):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    def line(points, colour, dash=""):
        path = " ".join(f"{x(g):.1f},{y(s):.1f}" for g, s in points)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'

    def text(at_x, at_y, words, colour=INK, anchor="start", size=13):
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">{words}</text>'

    first = rows[0]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(LEFT, 22, f'One GRPO step over the group size: {first["preset"]}, {first["dtype"]}, {first["threads"]} CPU threads', size=15),
        text(LEFT, 42, f'prompt {first["prompt_tokens"]} tokens, completions {first["new_tokens"]} tokens, one group'),
    ]
    step = 10 if top < 100 else 20
    for value in range(0, int(top) + 1, step):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{GRID}"/>')
        parts.append(text(LEFT - 8, y(value) + 4, f"{value} s", anchor="end"))
    parts += [text(x(g), HEIGHT - BOTTOM + 20, str(g), anchor="middle") for g in groups]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "completions a group, G", anchor="middle"))
    a_copy = seconds[0] / 2
    last = min(groups[-1], top / a_copy)
    parts.append(line([(2, 2 * a_copy), (last, last * a_copy)], COPIES, ' stroke-dasharray="6 5"'))
    parts.append(text(x(last) - 40, y(last * a_copy) + 14, "without sharing: G/2 times the G = 2 step", COPIES, "end"))
    parts.append(line(zip(groups, seconds), MEASURED))
    for group, value in zip(groups, seconds):
        parts.append(f'<circle cx="{x(group):.1f}" cy="{y(value):.1f}" r="4" fill="{MEASURED}"/>')
        parts.append(text(x(group), y(value) - 10, f"{value:.1f}", MEASURED, "middle"))
    parts.append("</svg>\n")
    with open(target, "w") as out:
        out.write("\n".join(parts))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
