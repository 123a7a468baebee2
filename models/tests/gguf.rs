//! The GGUF reader on files made by hand: what it reads, and that it refuses everything that the format forbids.

use lathe_ir::scheme::{Matrix, MatrixData, Scheme};
use lathe_models::ModelError;
use lathe_models::checkpoint::Checkpoint;
use lathe_models::gguf::{Gguf, Header, Value, ValueType};

/// Ids of the format, written out so that the tests do not depend on the reader's own tables.
const U32: u32 = 4;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const F32: u32 = 0;
const F16: u32 = 1;
const Q4_1: u32 = 3;
const Q8_0: u32 = 8;
const BF16: u32 = 30;

fn text(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// A metadata pair: key, type, and the value's bytes.
fn pair(key: impl AsRef<[u8]>, ty: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    [&text(key), &ty.to_le_bytes()[..], value.as_ref()].concat()
}

/// An array's element type, count and elements.
fn array(element: u32, count: u64, elements: impl AsRef<[u8]>) -> Vec<u8> {
    [&element.to_le_bytes(), &count.to_le_bytes()[..], elements.as_ref()].concat()
}

/// A tensor's description.
fn tensor(name: &str, dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut out = text(name);
    out.extend((dims.len() as u32).to_le_bytes());
    out.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
    out.extend(ty.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

/// A version 3 file of these pairs and tensors, with its data at the next multiple of 32.
fn file(pairs: &[Vec<u8>], tensors: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((pairs.len() as u64).to_le_bytes());
    out.extend(pairs.concat());
    out.extend(tensors.concat());
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// One pair of each kind and two tensors; its last byte belongs to the last tensor.
fn small_file() -> Vec<u8> {
    let nested = array(ARRAY, 2, [array(U32, 1, 7u32.to_le_bytes()), array(U32, 0, [])].concat());
    let pairs = [
        pair("u8", 0, [200]),
        pair("i8", 1, [0xfe]),
        pair("i16", 3, (-300i16).to_le_bytes()),
        pair("u32", U32, 70_000u32.to_le_bytes()),
        pair("i64", 11, (-5i64).to_le_bytes()),
        pair("f32", 6, 0.5f32.to_le_bytes()),
        pair("f64", 12, 0.1f64.to_le_bytes()),
        pair("bool", BOOL, [1]),
        pair("text", STRING, text("é")),
        pair("texts", ARRAY, array(STRING, 2, [text("a"), text("")].concat())),
        pair("bools", ARRAY, array(BOOL, 2, [0, 1])),
        pair("shorts", ARRAY, array(3, 2, [1, 0, 0xff, 0xff])),
        pair("nested", ARRAY, nested),
    ];
    let tensors = [tensor("a", &[3, 2], F32, 0), tensor("b", &[32], Q8_0, 32)];
    let mut data = floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    data.resize(32 + 34, 9);
    file(&pairs, &tensors, &data)
}

#[test]
fn values_of_every_kind_are_read() {
    let metadata = Header::parse(&small_file()).unwrap().metadata;
    let expected = [
        ("u8", Value::Unsigned(200)),
        ("i8", Value::Signed(-2)),
        ("i16", Value::Signed(-300)),
        ("u32", Value::Unsigned(70_000)),
        ("i64", Value::Signed(-5)),
        ("f32", Value::F32(0.5)),
        ("f64", Value::F64(0.1)),
        ("bool", Value::Bool(true)),
        ("text", Value::String("é".to_owned())),
        ("texts", Value::Strings(vec!["a".to_owned(), String::new()])),
        ("bools", Value::Scalars { element: ValueType::Bool, bytes: vec![0, 1] }),
    ];
    for (key, value) in expected {
        assert_eq!(metadata[key], value, "{key}");
    }
    assert_eq!(metadata["shorts"].integers(), Some(vec![1, -1]));
    let Value::Arrays(inner) = &metadata["nested"] else { panic!("{:?}", metadata["nested"]) };
    assert_eq!(inner.iter().map(Value::integers).collect::<Vec<_>>(), [Some(vec![7]), Some(vec![])]);
}

/// A matrix of one tensor of this type.
fn load(dims: &[u64], ty: u32, data: &[u8]) -> Matrix {
    Gguf::from_bytes(file(&[], &[tensor("w", dims, ty, 0)], data)).unwrap().load("w").unwrap()
}

#[test]
fn float_tensors_are_read_row_by_row() {
    let expected = Matrix { rows: 2, cols: 2, data: MatrixData::Float(vec![1.0, -2.0, 0.5, 65504.0]) };
    assert_eq!(load(&[2, 2], F32, &floats(&[1.0, -2.0, 0.5, 65504.0])), expected);
    assert_eq!(load(&[2, 2], F16, &[0x00, 0x3c, 0x00, 0xc0, 0x00, 0x38, 0xff, 0x7b]), expected);
    let expected = Matrix { rows: 1, cols: 3, data: MatrixData::Float(vec![1.0, -2.0, 0.5]) };
    assert_eq!(load(&[3], BF16, &[0x80, 0x3f, 0x00, 0xc0, 0x00, 0x3f]), expected);
}

#[test]
fn q4_1_keeps_codes_scale_and_minimum() {
    // Scale 0.5, minimum −1; byte i holds code i for element i and code 15 − i for element 16 + i.
    let mut block = vec![0x00, 0x38, 0x00, 0xbc];
    block.extend((0..16u8).map(|i| i | (15 - i) << 4));
    let matrix = load(&[32], Q4_1, &block);
    let MatrixData::Quantized { scheme, codes, scales, mins, .. } = &matrix.data else { panic!("{matrix:?}") };
    assert_eq!(*scheme, Scheme::INT4);
    assert_eq!(
        codes[..],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    );
    assert_eq!((scales[0].to_f32(), mins[0].to_f32()), (0.5, -1.0));
    let values = matrix.to_f32();
    assert_eq!((values[0], values[3], values[16], values[31]), (-1.0, 0.5, 6.5, -1.0));
}

#[test]
fn q8_0_shifts_codes_and_keeps_the_scale() {
    // Scale 2 for the first row, 0.5 for the second; elements −128, −1, 0, 127, then zeros.
    let row = |scale: [u8; 2]| [&scale[..], &[0x80, 0xff, 0x00, 0x7f], &[0; 28]].concat();
    let matrix = load(&[32, 2], Q8_0, &[row([0x00, 0x40]), row([0x00, 0x38])].concat());
    let MatrixData::Quantized { scheme, codes, mins, .. } = &matrix.data else { panic!("{matrix:?}") };
    assert_eq!(*scheme, Scheme::INT8);
    assert_eq!(codes[..5], [0, 127, 128, 255, 128]);
    assert!(mins.is_empty());
    let values = matrix.to_f32();
    assert_eq!(values[..5], [-256.0, -2.0, 0.0, 254.0, 0.0]);
    assert_eq!(values[32..36], [-64.0, -0.5, 0.0, 63.5]);
}

#[test]
fn rows_are_loaded_alone_and_only_where_they_are() {
    let gguf = Gguf::from_bytes(small_file()).unwrap();
    let rows = gguf.load_rows("a", 1..2).unwrap();
    assert_eq!(rows, Matrix { rows: 1, cols: 3, data: MatrixData::Float(vec![4.0, 5.0, 6.0]) });
    assert!(matches!(gguf.load_rows("a", 1..3), Err(ModelError::Shape { .. })));
    assert!(matches!(gguf.load("c"), Err(ModelError::NoTensor { .. })));
}

/// Expects the file to be refused by a sentence that contains all of these words.
#[track_caller]
fn refused(bytes: &[u8], words: &[&str]) {
    let Err(error) = Gguf::from_bytes(bytes.to_vec()) else { panic!("accepted; expected {words:?}") };
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "expected '{word}' in: {message}");
    }
}

#[test]
fn other_files_are_recognised() {
    let safetensors = [&40u64.to_le_bytes()[..], b"{\"weight\":"].concat();
    let cases: &[(&[u8], &str)] = &[
        (b"", "an empty file"),
        (&safetensors, "safetensors"),
        (b"\x08\x07\x12\x07pytorch", "ONNX"),
        (b"ftrt\0\0\0\0", "TensorRT"),
        (b"\x89LATHE\r\n\0\0", "a Lathe plan"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04", "PyTorch"),
        (b"{\"model_type\": \"llama\"}", "JSON"),
        (b"tjgg\x03\0\0\0", "old GGML"),
        (b"GGU", "another kind"),
    ];
    for (bytes, words) in cases {
        refused(bytes, &["expected a GGUF file", words]);
    }
}

#[test]
fn other_versions_are_refused() {
    let version = |bytes: [u8; 4]| [b"GGUF", &bytes[..], &[0; 16]].concat();
    refused(&version([2, 0, 0, 0]), &["version 3", "version 2", "convert"]);
    refused(&version([0, 0, 0, 3]), &["big-endian"]);
}

#[test]
fn counts_and_lengths_are_not_believed() {
    let mut tensors = file(&[], &[], &[]);
    tensors[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(&tensors, &["the list of tensors", "cut short"]);
    let mut pairs = file(&[], &[], &[]);
    pairs[16..24].copy_from_slice(&(1u64 << 40).to_le_bytes());
    refused(&pairs, &["the metadata", "cut short"]);
    refused(&file(&[pair("k", STRING, u64::MAX.to_le_bytes())], &[], &[]), &["'k'", "cut short"]);
    for element in [U32, STRING, ARRAY] {
        refused(&file(&[pair("k", ARRAY, array(element, 1 << 62, []))], &[], &[]), &["'k'", "cut short"]);
    }
}

#[test]
fn malformed_metadata_is_refused() {
    let one = |pair: Vec<u8>| file(&[pair], &[], &[0; 64]);
    refused(&one(pair([0xff], BOOL, [1])), &["a metadata key", "UTF-8"]);
    refused(&one(pair("", BOOL, [1])), &["a metadata key", "0 bytes"]);
    refused(&one(pair("k", 13, [1])), &["'k'", "value type", "13"]);
    refused(&one(pair("k", BOOL, [2])), &["'k'", "0 or 1", "found 2"]);
    refused(&one(pair("k", ARRAY, array(BOOL, 2, [1, 3]))), &["'k'", "0 or 1", "found 3"]);
    refused(&one(pair("k", STRING, text([0xc3]))), &["'k'", "UTF-8"]);
    let twice = [pair("k", BOOL, [1]), pair("k", BOOL, [0])];
    refused(&file(&twice, &[], &[]), &["each key once", "'k' twice"]);
    let deep = (0..100).fold(array(BOOL, 0, []), |inner, _| array(ARRAY, 1, inner));
    refused(&one(pair("k", ARRAY, deep)), &["'k'", "nested at most"]);
}

#[test]
fn alignment_is_a_power_of_two() {
    let aligned = |value: u32| file(&[pair("general.alignment", U32, value.to_le_bytes())], &[], &[]);
    for value in [0, 24, u32::MAX] {
        refused(&aligned(value), &["general.alignment", "a power of two", &value.to_string()]);
    }
    let text = pair("general.alignment", STRING, text("32"));
    refused(&file(&[text], &[], &[]), &["general.alignment", "a power of two"]);
    assert!(Gguf::from_bytes(aligned(64)).is_ok());
}

#[test]
fn malformed_tensors_are_refused() {
    let one = |tensor: Vec<u8>| file(&[], &[tensor], &[0; 256]);
    refused(&one(tensor(&"n".repeat(65), &[1], F32, 0)), &["tensor's name", "65 bytes"]);
    refused(&one(tensor("", &[1], F32, 0)), &["tensor's name", "0 bytes"]);
    refused(&one(tensor("w", &[], F32, 0)), &["'w'", "1 to 4 dimensions", "found 0"]);
    refused(&one(tensor("w", &[1; 5], F32, 0)), &["'w'", "1 to 4 dimensions", "found 5"]);
    refused(&one(tensor("w", &[4, 0], F32, 0)), &["'w'", "dimensions"]);
    refused(&one(tensor("w", &[1 << 32, 1 << 32], F32, 0)), &["'w'", "dimensions"]);
    refused(&one(tensor("w", &[1 << 62], F32, 0)), &["'w'", "dimensions"]);
    refused(&one(tensor("w", &[48], Q8_0, 0)), &["'w'", "dimensions"]);
    refused(&one(tensor("w", &[32], 12, 0)), &["'w'", "dimensions that suit Q4_K", "[32]"]);
    refused(&one(tensor("w", &[32], 19, 0)), &["'w'", "IQ1_S", "expected F32, F16, BF16, Q4_0, Q4_1, Q5_0"]);
    refused(&one(tensor("w", &[32], 99, 0)), &["'w'", "unknown type 99"]);
    refused(&one(tensor("w", &[1], F32, 8)), &["'w'", "an offset that 32 divides", "found 8"]);
    refused(&one(tensor("w", &[1], F32, 1 << 40)), &["'w'", "cut short"]);
    refused(&one(tensor("w", &[1], F32, u64::MAX - 31)), &["'w'", "an offset inside the file"]);
    refused(&one(tensor("w", &[65], F32, 0)), &["'w'", "cut short"]);
    refused(&one(tensor("w", &[2, 2, 2], F32, 0)), &["'w'", "a vector or a matrix"]);
    let two = |second: Vec<u8>| file(&[], &[tensor("a", &[9], F32, 0), second], &[0; 256]);
    refused(&two(tensor("a", &[1], F32, 64)), &["each name once", "'a' twice"]);
    refused(&two(tensor("b", &[1], F32, 32)), &["'a' and 'b' overlapping"]);
    assert!(Gguf::from_bytes(two(tensor("b", &[1], F32, 64))).is_ok());
}

#[test]
fn every_truncation_is_refused() {
    let whole = small_file();
    assert!(Gguf::from_bytes(whole.clone()).is_ok());
    for length in 0..whole.len() {
        assert!(Gguf::from_bytes(whole[..length].to_vec()).is_err(), "accepted {length} of {} bytes", whole.len());
    }
}

#[test]
fn no_flipped_bit_makes_the_reader_panic() {
    let whole = small_file();
    let mut refused = 0;
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match Gguf::from_bytes(flipped) {
            Err(_) => refused += 1,
            Ok(gguf) => {
                for name in gguf.names() {
                    gguf.load(name).unwrap();
                }
            }
        }
    }
    assert!(refused > whole.len(), "only {refused} flips were noticed");
}

#[test]
fn paths_are_named_in_errors() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let missing = folder.join("no-such-file.gguf");
    let empty = folder.join("empty.gguf");
    std::fs::write(&empty, []).unwrap();
    for (path, words) in [(missing.as_path(), "cannot open"), (&empty, "an empty file"), (folder, "a directory")] {
        let Err(error) = Gguf::open(path) else { panic!("opened {}", path.display()) };
        let message = error.to_string();
        assert!(message.contains(words) && message.contains(&*path.to_string_lossy()), "{message}");
    }
}

#[test]
fn every_quantized_type_has_the_values_that_others_read() {
    let mut rest = &include_bytes!("data/blocks.bin")[..];
    let mut schemes = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(12);
        let [ty, bytes, count] = [0, 4, 8].map(|at| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()));
        let (blocks, tail) = tail.split_at(bytes as usize);
        let (values, tail) = tail.split_at(4 * count as usize);
        rest = tail;
        // Two rows of one block each.
        let matrix = load(&[u64::from(count) / 2, 2], ty, blocks);
        let MatrixData::Quantized { scheme, .. } = &matrix.data else { panic!("{matrix:?}") };
        assert_eq!(scheme.row_bytes(matrix.cols) * matrix.rows, blocks.len(), "type {ty} as {scheme}");
        let found: Vec<u8> = matrix.to_f32().iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(found == values, "type {ty} as {scheme}");
        schemes.push(*scheme);
    }
    // All but one, which is for rows that no super-block divides, and which no type of the format has.
    let is_of_format = |scheme: &Scheme| scheme.is_integer() && *scheme != Scheme::INT6_SYMMETRIC;
    let integers: Vec<Scheme> = Scheme::ALL.into_iter().filter(is_of_format).collect();
    assert!(integers.iter().all(|scheme| schemes.contains(scheme)) && schemes.len() == integers.len());
}
