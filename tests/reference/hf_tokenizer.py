"""tokenizer.json and tokenizer_config.json as published models have them, from the vocabulary in a GGUF file."""

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6
SPACE = "\u2581"

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def bpe(vocab, merges, **changes):
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocab,
        "merges": merges,
    } | changes


def bytes_by_merges(value, texts):
    """Byte-level BPE, whose vocabulary and merges are spelled alike in both files."""
    pre = value("tokenizer.ggml.pre")
    steps = {
        "smollm": [{"type": "Digits", "individual_digits": True}, byte_level(True)],
        "qwen2": [
            {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False},
            byte_level(False),
        ],
    }
    if pre not in steps:
        raise SystemExit(f"the pre-tokenizer is `{pre}`, and this tool writes {', '.join(steps)} only")
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps[pre]},
        "decoder": byte_level(True) | {"add_prefix_space": True},
        "model": bpe({text: i for i, text in texts.items()}, value("tokenizer.ggml.merges")),
    }


def characters_by_scores(value, texts):
    """SentencePiece's BPE, of whose scores merges are made: every pair of tokens whose joined text is a token, the best
    first."""
    scores, kinds = value("tokenizer.ggml.scores"), value("tokenizer.ggml.token_type")
    # Tokens that are added by hand come before all others, as SentencePiece scores them and converters do not.
    scores = [0.0 if kind == USER_DEFINED else score for score, kind in zip(scores, kinds)]
    vocab = {text: i for i, text in texts.items()}
    merges = []
    for text, token in vocab.items():
        if kinds[token] not in (CONTROL, BYTE, UNKNOWN):
            for at in range(1, len(text)):
                left, right = text[:at], text[at:]
                if left in vocab and right in vocab:
                    merges.append((-scores[token], vocab[left], vocab[right], [left, right]))
    merges.sort()
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": bpe(vocab, [pair for *_, pair in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True),
    }


def tokenizer(value):
    kinds = value("tokenizer.ggml.token_type")
    texts = {i: text for i, text in enumerate(value("tokenizer.ggml.tokens")) if kinds[i] != UNUSED}
    is_scored = value("tokenizer.ggml.model") == "llama"
    if is_scored:
        if value("tokenizer.ggml.add_space_prefix", True):
            raise SystemExit("this tool writes no space in front of texts")
        # Converters to GGUF put spaces into the tokens that are added by hand.
        texts = {i: text.replace(" ", SPACE) if kinds[i] == USER_DEFINED else text for i, text in texts.items()}
    added = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kinds[i] == CONTROL}
        for i, text in texts.items() if kinds[i] in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    bos = value("tokenizer.ggml.tokens")[value("tokenizer.ggml.bos_token_id")]
    post = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [value("tokenizer.ggml.bos_token_id")], "tokens": [bos]}},
    }
    parts = characters_by_scores(value, texts) if is_scored else bytes_by_merges(value, texts)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": post if value("tokenizer.ggml.add_bos_token", is_scored) else None,
    } | parts


def ends(value):
    """The ids that end an answer: that of a text, and that of a turn where the vocabulary has one of the usual texts."""
    texts, eos = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.eos_token_id")
    usual = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"]
    turn = next((texts.index(text) for text in usual if text in texts), eos)
    return [eos] if turn == eos else [eos, turn]


def settings(value):
    texts = value("tokenizer.ggml.tokens")
    roles = [("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")]
    ids = {role: value(f"tokenizer.ggml.{name}_token_id") for role, name in roles}
    return {f"{role}_token": texts[i] for role, i in ids.items() if i is not None} | {"add_prefix_space": False}
