#!/usr/bin/env python3
"""Writes a model folder of Strata (a LlamaForCausalLM with a byte-level BPE tokenizer) as a GGUF file for llama.cpp.

    python scripts/export_gguf.py MODEL_FOLDER OUT.gguf [--type F16|F32|Q8_0]

Needs the Python packages gguf, numpy and safetensors. It is used to compare servers on the same weights
(docs/benchmarks.md).
"""
import argparse
import json
import pathlib
import sys

import gguf
import numpy
from safetensors.numpy import load_file

# The words of Strata's tokenizer are cut by the expression that GGUF knows under this name.
PRE_TOKENIZER = "qwen2"
NORMAL, CONTROL = 1, 3


def interleaved(weight, heads):
    """Rows of queries or keys in the order of GGUF: a rotated pair lies side by side, not half a head apart."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return numpy.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def add_tokenizer(writer, folder, config):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    model = tokenizer["model"]
    if model["type"] != "BPE":
        sys.exit(f"{folder}/tokenizer.json: expected a BPE tokenizer, found {model['type']}")
    tokens, types = [f"<|unused{i}|>" for i in range(config["vocab_size"])], [NORMAL] * config["vocab_size"]
    for token, index in model["vocab"].items():
        tokens[index] = token
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else NORMAL
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    if config.get("bos_token_id") is not None:
        writer.add_bos_token_id(config["bos_token_id"])
    ends = config.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    if ends and ends[0] is not None:
        writer.add_eos_token_id(ends[0])
    writer.add_add_bos_token(config.get("bos_token_id") is not None)


def add_weights(writer, folder, config, kind):
    weights = load_file(folder / "model.safetensors")
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, weight in weights.items():
        stem = name.removesuffix(".weight")
        if stem in outer:
            to = outer[stem]
        else:
            _, _, layer, part = stem.split(".", 3)
            to = f"blk.{layer}.{names[part]}"
            if part.endswith("q_proj"):
                weight = interleaved(weight, heads)
            elif part.endswith("k_proj"):
                weight = interleaved(weight, shared)
        weight = weight.astype(numpy.float32)
        if weight.ndim == 1 or kind == "F32":
            writer.add_tensor(to + ".weight", weight)
        elif kind == "F16":
            writer.add_tensor(to + ".weight", weight.astype(numpy.float16))
        else:
            form = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(to + ".weight", gguf.quants.quantize(weight, form), raw_dtype=form)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("out")
    parser.add_argument("--type", default="F16", choices=["F32", "F16", "Q8_0"])
    arguments = parser.parse_args()
    config = json.loads((arguments.folder / "config.json").read_text())
    if config.get("model_type") != "llama" or config.get("rope_scaling"):
        sys.exit(f"{arguments.folder}/config.json: expected a llama without scaled rotary positions")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    writer = gguf.GGUFWriter(arguments.out, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config.get("head_dim") or width // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, arguments.folder, config)
    add_weights(writer, arguments.folder, config, arguments.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
