#!/usr/bin/env python3
"""Times torch on the products and attention that `rlvr bench ops --json-lines` timed, in the same shapes.

    python3 scripts/peers/torch_ops.py OPS.jsonl [--device cuda|cpu] [--seconds 0.03]

Reads the shapes from rlvr's lines, so that they cannot differ, and prints a line of JSON for each as it is timed: the op
and shape as rlvr wrote them, torch's seconds and its FLOP/s. A product does the same work in both. Attention does not:
torch knows no prompt that several completions share. `as: "prompts"` is the causal attention of the prompts alone,
whose rate can be compared; `as: "rows"` is every completion with a prompt of its own, what a trainer without shared
prompts computes in place of it. Of decode attention each row reads its own copy of the prompt.
Exit code 1 when one of them fails.
"""
import argparse
import json
import statistics
import sys
import time

FEWEST, MOST = 5, 2000


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("lines", help="what rlvr bench ops --json-lines printed")
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    p.add_argument("--seconds", type=float, default=0.03, help="time for each")
    p.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as rlvr took")
    return p.parse_args()


def read(path):
    """What rlvr was asked for, and its lines with sizes."""
    about, ops = {}, []
    with open(path) as file:
        for text in file:
            line = json.loads(text)
            if line.get("bench") == "ops":
                about = line
            elif line.get("sizes") and "peer" not in line and "op" in line:
                ops.append(line)
    if not ops:
        sys.exit(f"{path}: no line of rlvr bench ops with the sizes of a product or of attention")
    return about, ops


def products(torch, op, make, gradients):
    """The call of one linear layer's pass: y = x W^T, dx = dy W, or dW += dy^T x in `gradients`."""
    n, h, o = (op["sizes"][key] for key in ("rows", "inputs", "outputs"))
    name = op["op"]
    if name.startswith("linear.backward_input."):
        dy, w = make(n, o), make(o, h)
        return lambda: torch.matmul(dy, w)
    if name.startswith("linear.backward_weight."):
        dy, x = make(n, o), make(n, h)
        if gradients != dy.dtype:
            # A sum in f32 of products of bf16 is a pass of its own in torch.
            dw = torch.zeros(o, h, dtype=gradients, device=dy.device)
            return lambda: dw.add_(torch.matmul(dy.t(), x))
        dw = make(o, h)
        return lambda: dw.addmm_(dy.t(), x)
    x, w = make(n, h), make(o, h)
    return lambda: torch.matmul(x, w.t())


def attention(torch, op, make, how):
    """The call, and its FLOP: 4 a pair, a head and a number of it forward, 10 backward."""
    s = op["sizes"]
    p, g, r, heads, kv, dim = (s[k] for k in ("prompt", "completions", "new_tokens", "heads", "key_value_heads", "dim"))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    if op["op"].startswith("decode_attention"):
        rows = s["groups"] * g
        q, k, v = make(rows, heads, 1, dim), make(rows, kv, p + r, dim), make(rows, kv, p + r, dim)
        return lambda: sdpa(q, k, v, enable_gqa=True), 4 * heads * dim * rows * (p + r)
    rows, length = (s["groups"], p) if how == "prompts" else (s["groups"] * g, p + r - 1)
    q, k, v = (make(rows, n, length, dim) for n in (heads, kv, kv))
    pairs = rows * length * (length + 1) // 2
    if op["op"] == "attention.forward":
        return lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True), 4 * heads * dim * pairs
    for tensor in (q, k, v):
        tensor.requires_grad_()
    out, dout = sdpa(q, k, v, is_causal=True, enable_gqa=True), make(rows, heads, length, dim)
    return lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), 10 * heads * dim * pairs


def timed(torch, calls, device, seconds):
    """Median of the runs' seconds; on a GPU of batches that take 4 ms or more."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for call in calls:
        call()
    wait()

    def batch(size, first):
        start = time.perf_counter()
        for i in range(size):
            calls[(first + i) % len(calls)]()
        wait()
        return (time.perf_counter() - start) / size

    once = batch(1, 0)
    size = max(1, -int(-4e-3 // once)) if device == "cuda" else 1
    each, begin = [], time.perf_counter()
    while len(each) < FEWEST or time.perf_counter() - begin < seconds:
        each.append(batch(size, len(each) * size))
        if len(each) >= MOST or time.perf_counter() - begin > 10:
            break
    return statistics.median(each), len(each) * size


def main():
    a = arguments()
    about, ops = read(a.lines)
    import torch

    if a.device == "cpu":
        torch.set_num_threads(a.threads or about.get("threads", 1))
    dtype = torch.bfloat16 if about.get("dtype") == "bf16" else torch.float32
    gradients = torch.bfloat16 if about.get("gradients") == "bf16" else torch.float32
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("highest")
    make = lambda *shape: torch.rand(shape, device=a.device, dtype=dtype) * 2 - 1
    failed = 0
    for op in ops:
        product = op["op"].startswith("linear.")
        for how in ["rows"] if product or op["op"].startswith("decode") else ["prompts", "rows"]:
            line = {"peer": f"torch {torch.__version__}", "op": op["op"], "shape": op["shape"], "sizes": op["sizes"]}
            try:
                calls, flop = [], op["flop"]
                for _ in range(op["input_sets"] if product else 1):
                    if product:
                        calls.append(products(torch, op, make, gradients))
                    else:
                        call, flop = attention(torch, op, make, how)
                        calls.append(call)
                median, runs = timed(torch, calls, a.device, a.seconds)
                line |= {"as": how} if not product else {}
                line |= {"seconds": median, "runs": runs, "input_sets": len(calls), "flop": flop}
                line |= {"flop_per_second": flop / median}
            except RuntimeError as error:
                failed += 1
                line["failed"] = str(error).splitlines()[0]
            del calls
            print(json.dumps(line), flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
