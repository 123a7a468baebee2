//! Recognises files that people pass in place of a model, so that the error can name the mistake.

use crate::error::ModelError;

const CONVERT: &str = "convert the model to safetensors or GGUF first";

/// The error for a file that does not start as the expected one does.
pub fn unexpected(expected: &'static str, bytes: &[u8]) -> ModelError {
    let (found, advice) = recognise(bytes);
    ModelError::Kind { expected, found, advice }
}

/// What a file in a model directory is, and what to do with it, when surely it is none that belongs there.
pub fn known(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let (found, advice) = recognise(bytes);
    let common = ["a file of another kind", "a JSON file", "an empty file", "a safetensors file"];
    (!common.contains(&found)).then_some((found, advice))
}

/// What a file is by its first bytes, and what to do with it.
fn recognise(bytes: &[u8]) -> (&'static str, &'static str) {
    const PREFIXES: &[(&[u8], &str, &str)] = &[
        (b"\x89LATHE\r\n", "a Lathe plan", "it is compiled already: give it to `lathe run`"),
        (b"GGUF", "a GGUF file", "give the path of that file as the model"),
        (b"ftrt", "a TensorRT plan", "Lathe compiles the model itself, so give it the checkpoint"),
        (
            b"version https://git-lfs.github.com/spec/",
            "a git-LFS pointer, which stands for a file that was not downloaded",
            "fetch the file itself with `git lfs pull`",
        ),
        (b"PK\x03\x04", "a zip archive, as PyTorch checkpoints are", CONVERT),
        (b"\x80\x02", "a Python pickle, as old PyTorch checkpoints are", CONVERT),
        (b"\x89HDF", "an HDF5 file, as Keras checkpoints are", CONVERT),
        (b"\x1f\x8b", "a gzip archive", "unpack it first"),
        (b"lmgg", "an old GGML file", CONVERT),
        (b"fmgg", "an old GGML file", CONVERT),
        (b"tjgg", "an old GGML file", CONVERT),
        (b"\x7fELF", "an executable", "give the path of a model"),
    ];
    if bytes.is_empty() {
        return ("an empty file", "download it again");
    }
    if let Some((_, found, advice)) = PREFIXES.iter().find(|(prefix, ..)| bytes.starts_with(prefix)) {
        return (found, advice);
    }
    if is_safetensors(bytes) {
        return ("a safetensors file", "give the directory in which it lies beside its config.json");
    }
    if is_onnx(bytes) {
        return ("an ONNX model", "give the checkpoint that it was exported from");
    }
    match text_start(bytes).as_slice() {
        text if text.starts_with(b"<!doctype") || text.starts_with(b"<html") => {
            ("a web page", "the download link led to a page, so use the link of the file itself")
        }
        text if text.starts_with(b"{") => ("a JSON file", "give the path of the file that holds the weights"),
        _ => ("a file of another kind", "check the path, and that the download is complete"),
    }
}

/// The first bytes in lower case, without leading white space or byte order mark.
fn text_start(bytes: &[u8]) -> Vec<u8> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    bytes.iter().take(16).map(u8::to_ascii_lowercase).collect()
}

/// A JSON header behind its length as u64.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    rest.starts_with(b"{") && u64::from_le_bytes(*length) <= 1 << 32
}

/// A protobuf message whose field 1 (the IR version) is a small number and whose field 2 (the producer), 7 (the
/// graph) or 8 (the operator sets) follows.
fn is_onnx(bytes: &[u8]) -> bool {
    matches!(bytes, [0x08, 1..=31, 0x12 | 0x3a | 0x42, ..])
}
