# mypy: ignore-errors
"""Make a toy model for real servers: python toy.py FOLDER writes FOLDER/toy.gguf and FOLDER/mlx/.

The next token depends on the last one alone, so what the model says is known beforehand, and the servers' own parsers
find real tool calls, real JSON and characters cut over tokens. The chat template ends with a mark that chooses what is
said. It is a Llama of one layer whose attention and feed-forward add nothing: a token's embedding is its own axis, and
the row of the output matrix of the token that follows it looks along that axis.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy

END = "<|im_end|>"
CALL = '<tool_call>\n{"name": "temperature", "arguments": {"city": "Seoul"}}\n</tool_call>'
# What is said after each mark, a piece a token. No piece may stand twice, for each has one successor. The bytes of the
# fox are tokens of their own, as real tokenizers have it.
SAID: dict[str, list[str | bytes]] = {
    "<|text|>": ["The ", "answer ", "is ", "안녕 ", b"\xf0", b"\x9f", b"\xa6", b"\x8a", " done."],
    "<|call|>": [
        "<tool_call>",
        '\n{"name": ',
        '"temperature", ',
        '"arguments": ',
        '{"city": "Seoul"}}',
        "\n</tool_call>",
    ],
    "<|json|>": ['{"city"', ": ", '"Busan"', ', "degrees"', ": 24", "}"],
    "<|long|>": ["one ", "two ", "three ", "one "],
}
# The form of Hermes and Qwen, which all servers know.
TEMPLATE = """
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n\\nYou may call one or more functions.\\n\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments ' }}
    {{- 'within <tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if tools and messages[-1].role == 'user' %}{{- '<|call|>' }}
    {%- elif 'JSON' in messages[-1].content %}{{- '<|json|>' }}
    {%- elif 'count' in messages[-1].content %}{{- '<|long|>' }}
    {%- else %}{{- '<|text|>' }}{%- endif %}
{%- endif %}
"""


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level BPE (the table of GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


LETTERS = byte_letters()


def spelled(piece: str | bytes) -> str:
    """A piece in the letters of the vocabulary."""
    return "".join(LETTERS[byte] for byte in (piece if isinstance(piece, bytes) else piece.encode()))


SPECIAL = [END, "<|im_start|>", *SAID]
PIECES = sorted({spelled(piece) for pieces in SAID.values() for piece in pieces} - set(LETTERS))
VOCABULARY = [*LETTERS, *PIECES, "ab", *SPECIAL]
NUMBER = {token: number for number, token in enumerate(VOCABULARY)}
HEADS, WIDTH, CONTEXT = 4, 384, 32768
assert len(NUMBER) == len(VOCABULARY) <= WIDTH


def weights() -> dict[str, numpy.ndarray]:
    """The tensors of the model by their names in Hugging Face's form, float32, rows by columns."""
    follows: dict[int, int] = {}
    for mark, pieces in SAID.items():
        chain = [NUMBER[mark], *(NUMBER[spelled(piece)] for piece in pieces)]
        if mark != "<|long|>":
            chain.append(NUMBER[END])
        for token, after in pairwise(chain):
            assert follows.setdefault(token, after) == after, VOCABULARY[token]
    embedding = numpy.zeros((len(VOCABULARY), WIDTH), numpy.float32)
    output = numpy.zeros((len(VOCABULARY), WIDTH), numpy.float32)
    for token in range(len(VOCABULARY)):
        embedding[token, token] = 1
        output[follows.get(token, NUMBER[END]), token] = 4
    square = numpy.zeros((WIDTH, WIDTH), numpy.float32)
    one = numpy.ones(WIDTH, numpy.float32)
    layer = {f"self_attn.{name}_proj": square for name in "qkvo"}
    layer |= {f"mlp.{name}_proj": square for name in ("gate", "up", "down")}
    layer |= {"input_layernorm": one, "post_attention_layernorm": one}
    return {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": one,
        "lm_head.weight": output,
        **{f"model.layers.0.{name}.weight": value for name, value in layer.items()},
    }


def write_gguf(file: Path) -> None:
    """The model for llama-server."""
    import gguf

    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.0.input_layernorm": "blk.0.attn_norm",
        "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
        "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
        **{f"model.layers.0.self_attn.{name}_proj": f"blk.0.attn_{name}" for name in "qkv"},
        **{f"model.layers.0.mlp.{name}_proj": f"blk.0.ffn_{name}" for name in ("gate", "up", "down")},
    }
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(VOCABULARY)
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in VOCABULARY]
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(NUMBER[END])
    writer.add_bos_token_id(NUMBER["<|im_start|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, value in weights().items():
        writer.add_tensor(f"{names[name.removesuffix('.weight')]}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_mlx(folder: Path) -> None:
    """The model for mlx_lm.server: a folder as Hugging Face has them."""
    from safetensors.numpy import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True)
    save_file(weights(), folder / "model.safetensors", metadata={"format": "mlx"})
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": CONTEXT,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": NUMBER[END],
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.BPE(vocab=NUMBER, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    write_gguf(place / "toy.gguf")
    write_mlx(place / "mlx")
