"""Tokens as llama.cpp makes them, from the vocabulary of a GGUF file.

    oracle.py MODEL.gguf PRE < TEXTS > TOKENS

Only the file's metadata is used: a copy without its tensors is written to a temporary folder, with the pre-tokenizer PRE
in place of its own (or its own where PRE is empty), so that one vocabulary serves for every pre-tokenizer.

A text is its length as a little-endian u32 and its UTF-8 bytes; before it stands one byte: 0 for plain text, 1 when
control tokens are recognized. The answer to each is a count and the tokens, as little-endian u32.
"""

import struct
import sys
import tempfile
from pathlib import Path

import cffi
import xllamacpp

# What is used of llama.h. The package has no call that only tokenizes, but its extension exports the library's own.
LLAMA_H = """
    typedef struct { char before[72]; bool vocab_only; char after[7]; } params;
    typedef void (*log_callback)(int level, const char * text, void * data);
    void llama_log_set(log_callback callback, void * data);
    void llama_backend_init(void);
    params llama_model_default_params(void);
    void * llama_model_load_from_file(const char * path, params params);
    void * llama_model_get_vocab(void * model);
    int32_t llama_tokenize(void * vocab, const char * text, int32_t length, int32_t * tokens, int32_t max,
                           bool add_special, bool parse_special);
"""
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


def text_at(data, at):
    (length,) = struct.unpack_from("<Q", data, at)
    return at + 8 + length, data[at + 8 : at + 8 + length]


def end_of_value(data, at, kind):
    if kind == STRING:
        return text_at(data, at)[0]
    if kind == ARRAY:
        inner, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if inner in SCALAR_BYTES:
            return at + count * SCALAR_BYTES[inner]
        for _ in range(count):
            at = end_of_value(data, at, inner)
        return at
    return at + SCALAR_BYTES[kind]


def vocabulary_only(data, pre):
    """The file's metadata as a file of its own."""
    (pairs,) = struct.unpack_from("<Q", data, 16)
    out, at = [b"GGUF" + struct.pack("<IQQ", 3, 0, pairs)], 24
    for _ in range(pairs):
        start = at
        at, key = text_at(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        value = at + 4
        at = end_of_value(data, value, kind)
        if pre and key == b"tokenizer.ggml.pre":
            out.append(data[start:value] + struct.pack("<Q", len(pre)) + pre.encode())
        else:
            out.append(data[start:at])
    whole = b"".join(out)
    return whole + bytes(-len(whole) % 32)


def main():
    ffi = cffi.FFI()
    ffi.cdef(LLAMA_H)
    (library,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    llama = ffi.dlopen(str(library))
    silent = ffi.callback("log_callback", lambda level, text, data: None)
    llama.llama_log_set(silent, ffi.NULL)
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        path.write_bytes(vocabulary_only(Path(sys.argv[1]).read_bytes(), sys.argv[2]))
        model = llama.llama_model_load_from_file(str(path).encode(), params)
    if model == ffi.NULL:
        sys.exit(f"llama.cpp cannot read the vocabulary of {sys.argv[1]}")
    vocab = llama.llama_model_get_vocab(model)
    texts, at, out = sys.stdin.buffer.read(), 0, []
    while at < len(texts):
        recognize, length = struct.unpack_from("<BI", texts, at)
        text = texts[at + 5 : at + 5 + length]
        at += 5 + length
        tokens = ffi.new("int32_t[]", length + 8)
        count = llama.llama_tokenize(vocab, text, length, tokens, length + 8, False, bool(recognize))
        out.append(struct.pack("<i", count) + bytes(ffi.buffer(tokens, 4 * max(count, 0))))
    sys.stdout.buffer.write(b"".join(out))


main()
