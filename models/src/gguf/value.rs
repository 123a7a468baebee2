//! Metadata values of a GGUF file.

use super::cursor::Cursor;
use crate::error::ModelError;

/// Arrays inside arrays are legal; deeper than this they are an attack on the stack.
const MAX_DEPTH: usize = 4;

/// The type of a metadata value. The numbers are those of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = {
        use ValueType::{Array, Bool, F32, F64, I8, I16, I32, I64, String, U8, U16, U32, U64};
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    fn read(cursor: &mut Cursor, what: &str) -> Result<ValueType, ModelError> {
        let id = cursor.u32(what)?;
        ValueType::ALL.get(id as usize).copied().ok_or_else(|| ModelError::Malformed {
            what: what.to_owned(),
            expected: "a value type from 0 to 12".to_owned(),
            found: id.to_string(),
        })
    }

    /// Bytes of a value, or the least that one takes: an empty string, an empty array with its element type.
    pub(super) fn least_bytes(self) -> usize {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::String => 8,
            ValueType::Array => 12,
        }
    }
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A single-precision number.
    F32(f32),
    /// A double-precision number.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    String(String),
    /// An array of text.
    Strings(Vec<String>),
    /// An array of numbers or bools, kept as the file's bytes: no memory beyond the file's own size.
    Scalars {
        /// The type of each element.
        element: ValueType,
        /// Little-endian elements.
        bytes: Vec<u8>,
    },
    /// An array of arrays.
    Arrays(Vec<Value>),
}

impl Value {
    /// Reads a type and a value of it; `what` names the value in errors.
    pub(super) fn read(cursor: &mut Cursor, what: &str) -> Result<Value, ModelError> {
        match ValueType::read(cursor, what)? {
            ValueType::Array => read_array(cursor, what, 1),
            ValueType::String => Ok(Value::String(cursor.string(what)?.to_owned())),
            scalar => {
                let bytes = read_scalars(cursor, scalar, 1, what)?;
                Ok(scalar_at(scalar, bytes, 0))
            }
        }
    }

    /// The elements of an array of integers; `None` for anything else, and for one that an i64 cannot hold.
    pub fn integers(&self) -> Option<Vec<i64>> {
        let Value::Scalars { element, bytes } = self else { return None };
        let count = bytes.len() / element.least_bytes();
        (0..count)
            .map(|index| match scalar_at(*element, bytes, index) {
                Value::Unsigned(value) => i64::try_from(value).ok(),
                Value::Signed(value) => Some(value),
                _ => None,
            })
            .collect()
    }

    /// The elements of an array of single-precision numbers; `None` for anything else.
    pub fn floats(&self) -> Option<Vec<f32>> {
        let Value::Scalars { element: ValueType::F32, bytes } = self else { return None };
        let (numbers, _) = bytes.as_chunks::<4>();
        Some(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect())
    }

    /// What kind of value it is, and the value when it is short: for error messages.
    pub fn describe(&self) -> String {
        match self {
            Value::Unsigned(value) => format!("the integer {value}"),
            Value::Signed(value) => format!("the integer {value}"),
            Value::F32(value) => format!("the number {value}"),
            Value::F64(value) => format!("the double-precision number {value}"),
            Value::Bool(value) => value.to_string(),
            Value::String(text) if text.len() <= 64 => format!("the text '{text}'"),
            Value::String(text) => format!("a text of {} bytes", text.len()),
            Value::Strings(items) => format!("an array of {} texts", items.len()),
            Value::Scalars { element, bytes } => {
                format!("an array of {} {element:?} values", bytes.len() / element.least_bytes())
            }
            Value::Arrays(items) => format!("an array of {} arrays", items.len()),
        }
    }
}

fn read_array(cursor: &mut Cursor, what: &str, depth: usize) -> Result<Value, ModelError> {
    if depth > MAX_DEPTH {
        return Err(ModelError::Malformed {
            what: what.to_owned(),
            expected: format!("arrays nested at most {MAX_DEPTH} deep"),
            found: "deeper ones".to_owned(),
        });
    }
    let element = ValueType::read(cursor, what)?;
    let count = cursor.count(element.least_bytes(), what)?;
    match element {
        ValueType::Array => {
            Ok(Value::Arrays((0..count).map(|_| read_array(cursor, what, depth + 1)).collect::<Result<_, _>>()?))
        }
        ValueType::String => {
            Ok(Value::Strings((0..count).map(|_| cursor.string(what).map(str::to_owned)).collect::<Result<_, _>>()?))
        }
        scalar => Ok(Value::Scalars { element, bytes: read_scalars(cursor, scalar, count, what)?.to_owned() }),
    }
}

/// The bytes of `count` scalars. Their product fits: `count` was bounded by the bytes that remain, or is 1.
fn read_scalars<'a>(
    cursor: &mut Cursor<'a>,
    element: ValueType,
    count: usize,
    what: &str,
) -> Result<&'a [u8], ModelError> {
    let bytes = cursor.take(count * element.least_bytes(), what)?;
    match bytes.iter().find(|&&byte| element == ValueType::Bool && byte > 1) {
        None => Ok(bytes),
        Some(byte) => Err(ModelError::Malformed {
            what: what.to_owned(),
            expected: "a bool as 0 or 1".to_owned(),
            found: byte.to_string(),
        }),
    }
}

/// Element `index` of `bytes`, which hold at least `index + 1` scalars of this type.
fn scalar_at(element: ValueType, bytes: &[u8], index: usize) -> Value {
    let size = element.least_bytes();
    let mut wide = [0; 8];
    wide[..size].copy_from_slice(&bytes[index * size..(index + 1) * size]);
    let bits = u64::from_le_bytes(wide);
    match element {
        ValueType::U8 | ValueType::U16 | ValueType::U32 | ValueType::U64 => Value::Unsigned(bits),
        ValueType::I8 => Value::Signed(i64::from(bits as i8)),
        ValueType::I16 => Value::Signed(i64::from(bits as i16)),
        ValueType::I32 => Value::Signed(i64::from(bits as i32)),
        ValueType::I64 => Value::Signed(bits as i64),
        ValueType::F32 => Value::F32(f32::from_bits(bits as u32)),
        ValueType::F64 => Value::F64(f64::from_bits(bits)),
        ValueType::Bool => Value::Bool(bits != 0),
        ValueType::String | ValueType::Array => unreachable!("callers pass scalar types"),
    }
}
