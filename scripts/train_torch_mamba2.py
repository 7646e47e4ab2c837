#!/usr/bin/env python3
"""Training speed of transformers' Mamba2ForCausalLM on the CPU, at the shape of `strata bench train --mixer ssm`.

    python scripts/train_torch_mamba2.py --batch 4 [--chunk 64] [--precision bf16] [--threads 2]

The model is made from a configuration, with random weights and random tokens: nothing is downloaded. On a CPU the class
takes its path in plain PyTorch (its fast one needs a GPU's kernels). A step is forward, loss, backward, clipping and
AdamW, as in Strata. Prints one JSON object. Needs the Python packages torch and transformers.
"""
import argparse
import json
import logging
import resource
import statistics
import time

import torch
import transformers


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--width", type=int, default=384)
    add("--layers", type=int, default=6)
    add("--vocab", type=int, default=8192)
    add("--head-dim", type=int, default=64)
    add("--state", type=int, default=64)
    add("--seq", type=int, default=512)
    add("--batch", type=int, default=16)
    add("--chunk", type=int, default=256, help="tokens of a chunk of its scan; 256 is the class's default")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16 is autocast")
    add("--threads", type=int, default=2)
    add("--steps", type=int, default=3, help="steps that are timed, after one that is not")
    return parser.parse_args()


def build(a):
    config = transformers.Mamba2Config(
        hidden_size=a.width,
        num_hidden_layers=a.layers,
        vocab_size=a.vocab,
        expand=2,
        head_dim=a.head_dim,
        num_heads=2 * a.width // a.head_dim,
        state_size=a.state,
        n_groups=1,
        conv_kernel=4,
        chunk_size=a.chunk,
        use_bias=False,
        use_conv_bias=True,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return transformers.Mamba2ForCausalLM(config).train()


def main():
    a = arguments()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = build(a)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    tokens = torch.randint(0, a.vocab, (a.batch, a.seq))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "bf16"):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    loss = step()
    seconds = []
    for _ in range(a.steps):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    if loss != loss:
        raise SystemExit("the loss is not a number: the time of such steps says nothing")
    result = {
        "tokens_per_second": a.batch * a.seq / statistics.median(seconds),
        "seconds_per_step": statistics.median(seconds),
        "loss": loss,
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **vars(a),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
