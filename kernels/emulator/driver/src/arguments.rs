//! Arguments that only the callee knows the shape of: a kernel's parameters, module images, and options whose values are
//! numbers or addresses.

#![expect(unsafe_code, reason = "the arguments are addresses in the program's memory")]

use std::ffi::{CStr, c_char};

use lathe_emulator::Param;

use crate::codes::{Answer, Code, invalid};

/// The words of the `extra` argument: end, buffer, size of the buffer.
const EXTRA_END: usize = 0;
const EXTRA_POINTER: usize = 1;
const EXTRA_SIZE: usize = 2;

/// Reads the word at an address that the caller passed.
fn word(address: usize) -> Answer<usize> {
    if address == 0 || !address.is_multiple_of(align_of::<usize>()) {
        return invalid("an array of pointers is null or not aligned");
    }
    // SAFETY: the caller got the address from the program as an array of pointers with at least this entry.
    Ok(unsafe { (address as *const usize).read() })
}

/// Reads bytes at an address that the program passed as so many bytes.
fn bytes(address: usize, count: usize) -> Answer<Vec<u8>> {
    if address == 0 {
        return invalid("a pointer to a parameter is null");
    }
    let mut found = vec![0u8; count];
    // SAFETY: the program passed the address as that of a value of this length.
    unsafe { std::ptr::copy_nonoverlapping(address as *const u8, found.as_mut_ptr(), count) };
    Ok(found)
}

/// The parameters of a launch, from `kernelParams` or from `extra`, laid out as the kernel declares them.
pub fn kernel_params(declared: &[Param], pointers: usize, extra: usize) -> Answer<Vec<u8>> {
    let length = declared.last().map_or(0, |param| (param.offset + param.bytes) as usize);
    match (pointers, extra) {
        (0, 0) if length == 0 => Ok(vec![]),
        (0, 0) => invalid(format!("the kernel has {} parameters, and none were passed", declared.len())),
        (0, extra) => {
            let found = packed(extra)?;
            if found.len() != length {
                return invalid(format!("{} bytes of parameters were passed, {length} are declared", found.len()));
            }
            Ok(found)
        }
        (pointers, 0) => {
            let mut out = vec![0; length];
            for (index, param) in declared.iter().enumerate() {
                let at = word(pointers + index * size_of::<usize>())?;
                let (offset, count) = (param.offset as usize, param.bytes as usize);
                out[offset..offset + count].copy_from_slice(&bytes(at, count)?);
            }
            Ok(out)
        }
        _ => invalid("both kernelParams and extra were passed"),
    }
}

/// The bytes that an `extra` argument describes.
fn packed(extra: usize) -> Answer<Vec<u8>> {
    let (mut address, mut size, mut at) = (0, None, extra);
    // Two pairs and the end; a longer list is wrong.
    for _ in 0..3 {
        match word(at)? {
            EXTRA_END => break,
            EXTRA_POINTER => address = word(at + size_of::<usize>())?,
            EXTRA_SIZE => size = Some(word(word(at + size_of::<usize>())?)?),
            other => return invalid(format!("extra holds {other}")),
        }
        at += 2 * size_of::<usize>();
    }
    let size = size.ok_or_else(|| Code::ERROR_INVALID_VALUE.because("extra lacks the size of the buffer"))?;
    if size > 1 << 16 {
        return invalid(format!("a buffer of {size} bytes of parameters"));
    }
    bytes(address, size)
}

/// The text of a module's image.
pub fn image(address: usize) -> Answer<String> {
    if address == 0 {
        return invalid("the image is null");
    }
    let mut head = [0u8; 4];
    for (index, byte) in head.iter_mut().enumerate() {
        // SAFETY: an image is a binary, which is longer than this, or text that ends with a zero byte, at which this stops.
        *byte = unsafe { (address as *const u8).add(index).read() };
        if *byte == 0 {
            break;
        }
    }
    if head[0] == 0 {
        return Err(Code::ERROR_INVALID_IMAGE.because("the image is empty"));
    }
    let binary = match head {
        [0x7f, b'E', b'L', b'F'] => Some("a cubin"),
        [0x50, 0xed, 0x55, 0xba] | [0xb1, 0x43, 0x62, 0x46] => Some("a fat binary"),
        _ => None,
    };
    if let Some(kind) = binary {
        let why = format!("the image is {kind}; the emulated GPU runs PTX only");
        return Err(Code::ERROR_NO_BINARY_FOR_GPU.because(why));
    }
    // SAFETY: what is no binary is text that ends with a zero byte.
    let text = unsafe { CStr::from_ptr(address as *const c_char) };
    let wrong = |_| Code::ERROR_INVALID_IMAGE.because("the image is neither a binary nor PTX text");
    text.to_str().map(str::to_owned).map_err(wrong)
}

/// Writes a text that ends with a zero byte into a buffer of the program, cut to its size; how many bytes it is long.
pub fn write_text(address: usize, capacity: usize, text: &str) -> usize {
    if address == 0 || capacity == 0 {
        return 0;
    }
    let count = text.len().min(capacity - 1);
    // SAFETY: the program passed the buffer and its capacity, within which this stays.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), address as *mut u8, count);
        (address as *mut u8).add(count).write(0);
    }
    count
}

/// Writes a result of one of several sizes, where an attribute decides on its type.
pub fn write_bytes(address: usize, value: &[u8]) -> Answer {
    if address == 0 {
        return invalid("the pointer for a result is null");
    }
    // SAFETY: the program passed the address of a value of the attribute's documented type, which is as long as this.
    unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), address as *mut u8, value.len()) };
    Ok(())
}

/// Reads a value whose type an attribute decides on.
pub fn read_bytes(address: usize, count: usize) -> Answer<Vec<u8>> {
    bytes(address, count)
}
