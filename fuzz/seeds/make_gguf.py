"""Writes the GGUF files in gguf/, from which fuzzing starts. They are small: a run costs as much as its vocabulary is large, and
a change more often hits what matters.

    pip install gguf numpy && python make_gguf.py
"""
import os

import gguf
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
TYPES = gguf.GGMLQuantizationType


def writer(name, architecture):
    return gguf.GGUFWriter(os.path.join(HERE, "gguf", name), architecture)


def close(file):
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def add_byte_level(file, pre):
    # The letters of a few texts, merges, special and user-defined tokens, and an unused id.
    tokens = ["<|endoftext|>", "<|im_end|>", *"HeloWrdIt'sg\u010a\u0120,!1234.\u00c3\u00b6\u0141\u0142", "he", "ll", "hell", "\u0120t", "<think>", "[PAD]"]
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(pre)
    file.add_token_list(tokens)
    file.add_token_types([3, 3] + [1] * (len(tokens) - 4) + [4, 5])
    file.add_token_merges(["h e", "l l", "he ll", "\u0120 t"])
    file.add_bos_token_id(0)
    file.add_eos_token_id(1)
    file.add_add_bos_token(True)
    file.add_chat_template("{{ messages }}")
    return len(tokens)


def byte_level():
    file = writer("byte_level.gguf", "llama")
    add_byte_level(file, "smollm")
    file.add_tensor("a", np.arange(8, dtype=np.float32))
    close(file)


def sentencepiece():
    file = writer("sentencepiece.gguf", "llama")
    file.add_tokenizer_model("llama")
    # All bytes that the text of the target may need: of `\u00f6`, of a line end.
    of_bytes = [f"<0x{byte:02X}>" for byte in [0x0A, 0x0D, 0x09, 0xC3, 0xB6, 0x9F]]
    pieces = ["\u2581", "t", "h", "e", "l", "o", "th", "\u2581th", "he", "the"]
    tokens = ["<unk>", "<s>", "</s>", *of_bytes, *pieces]
    file.add_token_list(tokens)
    file.add_token_types([2, 3, 3] + [6] * len(of_bytes) + [1] * len(pieces))
    file.add_token_scores([0.0] * (3 + len(of_bytes)) + [-9.0, -10.0, -11.0, -12.0, -13.0, -14.0, -0.0, -1.0, -2.0, -3.0])
    close(file)


def values():
    file = writer("values.gguf", "gpt2")
    for kind, value in [
        ("uint8", 7), ("int8", -7), ("uint16", 9), ("int16", -9), ("uint32", 5), ("int32", -5), ("uint64", 1 << 40), ("int64", -(1 << 40)),
        ("float32", 0.5), ("float64", 0.25), ("bool", True), ("string", "x")]:
        getattr(file, "add_" + kind)(kind, value)
    file.add_array("ints", [1, 2, 3])
    file.add_array("texts", ["a", "b"])
    file.add_custom_alignment(64)
    file.add_tensor("k", np.zeros((1, 144), np.uint8), raw_dtype=TYPES.Q4_K)
    close(file)


def blocks():
    """Write a row of one block of each type."""
    file, random = writer("blocks.gguf", "test"), np.random.default_rng(5)
    for name in ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]:
        size = gguf.GGML_QUANT_SIZES[TYPES[name]][1]
        data = random.integers(0, 256, (1, size), dtype=np.uint8)
        own = {"F32": np.float32, "F16": np.float16}.get(name)
        file.add_tensor(name, data.view(own) if own else data, raw_dtype=TYPES[name])
    close(file)


def model(architecture, scaling):
    """Write a whole model of one layer."""
    width, inner, file = 4, 6, writer(f"{architecture}.gguf", architecture)
    vocab = add_byte_level(file, "gpt-2")
    file.add_block_count(1)
    file.add_context_length(8)
    file.add_embedding_length(width)
    file.add_feed_forward_length(4 * width if architecture == "gpt2" else inner)
    file.add_head_count(2)
    zeros = lambda name, *shape: file.add_tensor(name, np.zeros(shape, np.float16 if len(shape) > 1 else np.float32))
    zeros("token_embd.weight", vocab, width)
    zeros("output_norm.weight", width)
    zeros("blk.0.attn_norm.weight", width)
    zeros("blk.0.ffn_norm.weight", width)
    zeros("blk.0.attn_output.weight", width, width)
    if architecture == "gpt2":
        file.add_layer_norm_eps(1e-5)
        zeros("position_embd.weight", 8, width)
        zeros("output_norm.bias", width)
        zeros("blk.0.attn_norm.bias", width)
        zeros("blk.0.ffn_norm.bias", width)
        zeros("blk.0.attn_qkv.weight", 3 * width, width)
        zeros("blk.0.attn_qkv.bias", 3 * width)
        zeros("blk.0.attn_output.bias", width)
        zeros("blk.0.ffn_up.weight", 4 * width, width)
        zeros("blk.0.ffn_up.bias", 4 * width)
        zeros("blk.0.ffn_down.weight", width, 4 * width)
        zeros("blk.0.ffn_down.bias", width)
        return close(file)
    file.add_head_count_kv(1)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_freq_base(1e4)
    zeros("blk.0.attn_q.weight", width, width)
    zeros("blk.0.attn_k.weight", width // 2, width)
    zeros("blk.0.attn_v.weight", width // 2, width)
    zeros("blk.0.ffn_gate.weight", inner, width)
    zeros("blk.0.ffn_up.weight", inner, width)
    zeros("blk.0.ffn_down.weight", width, inner)
    if architecture == "qwen2":
        zeros("blk.0.attn_q.bias", width)
        zeros("blk.0.attn_k.bias", width // 2)
        zeros("blk.0.attn_v.bias", width // 2)
    if architecture == "qwen3":
        zeros("blk.0.attn_q_norm.weight", width // 2)
        zeros("blk.0.attn_k_norm.weight", width // 2)
    if scaling == "tensor":
        file.add_tensor("rope_freqs.weight", np.ones(1, np.float32))
    elif scaling:
        file.add_rope_scaling_type(scaling)
        file.add_rope_scaling_factor(2.0)
        file.add_rope_scaling_orig_ctx_len(4)
    close(file)


byte_level()
sentencepiece()
values()
blocks()
for architecture, scaling in [
    ("gpt2", None), ("llama", "tensor"), ("qwen2", gguf.RopeScalingType.YARN), ("qwen3", gguf.RopeScalingType.LINEAR)]:
    model(architecture, scaling)
