//! The command line of `emulator`.

use std::error::Error;

use lathe_emulator::{Chip, Device};

use crate::DEFAULT_CHIP;

/// What to run.
#[derive(Debug)]
pub struct Command {
    pub file: String,
    pub kernel: Option<String>,
    pub chip: Chip,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub arguments: Vec<Argument>,
    pub print: Vec<usize>,
    pub checks: bool,
    pub steps: Option<u64>,
    pub threads: Option<usize>,
}

/// An argument of the kernel: a number, or a buffer of so many.
#[derive(Debug)]
pub struct Argument {
    ty: String,
    count: Option<usize>,
    fill: Fill,
}

/// What an argument holds.
#[derive(Debug)]
enum Fill {
    /// The bytes of one number.
    Number(Vec<u8>),
    Iota,
    Random,
    /// Nothing has written it.
    None,
    File(String),
}

/// Options that take a value.
const OPTIONS: [&str; 8] = ["--chip", "--grid", "--block", "--shared", "--print", "--steps", "--threads", "--arg"];

/// Reads the words of the command line.
pub fn parse(words: &[String]) -> Result<Command, String> {
    if words[0].starts_with('-') {
        return Err(format!("expected a PTX file, found `{}`", words[0]));
    }
    let mut command = Command {
        file: words[0].clone(),
        kernel: None,
        chip: DEFAULT_CHIP,
        grid: [1; 3],
        block: [32, 1, 1],
        shared: 0,
        arguments: vec![],
        print: vec![],
        checks: true,
        steps: None,
        threads: None,
    };
    let mut words = words[1..].iter();
    while let Some(word) = words.next() {
        if !word.starts_with("--") && command.kernel.is_none() {
            command.kernel = Some(word.clone());
            continue;
        }
        if word == "--no-checks" {
            command.checks = false;
            continue;
        }
        if !word.starts_with("--") {
            let kernel = command.kernel.as_deref().unwrap_or_default();
            return Err(format!("expected an option, found `{word}`; the kernel is `{kernel}`"));
        }
        if !OPTIONS.contains(&word.as_str()) {
            return Err(format!("`{word}` is no option"));
        }
        let value = words.next().ok_or_else(|| format!("`{word}` needs a value"))?;
        let wrong = |expected: &str| format!("`{value}` is no value of `{word}`: expected {expected}");
        let count = || wrong("a whole number");
        let sizes = || wrong("one to three whole numbers, such as 4,2");
        match word.as_str() {
            "--chip" => command.chip = Chip::parse(value).ok_or_else(|| wrong(&chips()))?,
            "--grid" => command.grid = dims(value).ok_or_else(sizes)?,
            "--block" => command.block = dims(value).ok_or_else(sizes)?,
            "--shared" => command.shared = value.parse().map_err(|_| count())?,
            "--print" => command.print.push(value.parse().map_err(|_| count())?),
            "--steps" => command.steps = Some(value.parse().map_err(|_| count())?),
            "--threads" => command.threads = Some(threads(value)?),
            _ => command.arguments.push(Argument::parse(value)?),
        }
    }
    for &index in &command.print {
        if command.arguments.get(index).is_none_or(|argument| argument.count.is_none()) {
            return Err(format!("`--print {index}`: argument {index} is no buffer; the first argument is 0"));
        }
    }
    Ok(command)
}

/// Reads a number of host threads.
pub fn threads(text: &str) -> Result<usize, String> {
    let wrong = || format!("`{text}` is no value of `--threads`: expected a whole number from 1");
    text.parse().ok().filter(|&threads| threads > 0).ok_or_else(wrong)
}

/// The names of all chips.
fn chips() -> String {
    Chip::ALL.map(Chip::name).join(", ")
}

fn dims(text: &str) -> Option<[u32; 3]> {
    let mut out = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return None;
    }
    for (slot, part) in out.iter_mut().zip(parts) {
        *slot = part.parse().ok()?;
    }
    Some(out)
}

/// The names that [`width`] knows.
const TYPES: &str = "u8, u16, u32, u64, s8, s16, s32, s64, f16, bf16, f32 and f64";

fn width(ty: &str) -> Option<usize> {
    Some(match ty {
        "u8" | "s8" => 1,
        "u16" | "s16" | "f16" | "bf16" => 2,
        "u32" | "s32" | "f32" => 4,
        "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}

/// The bytes of a number of a type.
fn number(ty: &str, text: &str) -> Result<Vec<u8>, String> {
    let bytes = width(ty).unwrap_or(4);
    if ty.contains('f') {
        let value = text.parse().map_err(|_| format!("`{text}` is no {ty}: expected a number"))?;
        return Ok(rounded(ty, value));
    }
    let (least, most) = if ty.starts_with('s') {
        (-(1i128 << (8 * bytes - 1)), (1 << (8 * bytes - 1)) - 1)
    } else {
        (0, (1 << (8 * bytes)) - 1)
    };
    let value = match text.strip_prefix("0x") {
        Some(digits) => i128::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let value = value.ok().filter(|value| (least..=most).contains(value));
    let value = value.ok_or_else(|| format!("`{text}` is no {ty}: expected a whole number from {least} to {most}"))?;
    Ok(value.to_le_bytes()[..bytes].to_vec())
}

/// The bytes of the number of a type that is next to a value; whole numbers start again where the type ends.
fn rounded(ty: &str, value: f64) -> Vec<u8> {
    match ty {
        "f16" => half::f16::from_f64(value).to_le_bytes().to_vec(),
        "bf16" => half::bf16::from_f64(value).to_le_bytes().to_vec(),
        "f32" => (value as f32).to_le_bytes().to_vec(),
        "f64" => value.to_le_bytes().to_vec(),
        ty => (value as i64).to_le_bytes()[..width(ty).unwrap_or(4)].to_vec(),
    }
}

/// The contents of a file that is named on the command line.
fn read(path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{path} cannot be read: {error}"))
}

/// Bytes that are written as pairs of hexadecimal digits.
fn hex(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("`{text}` is no bytes: expected an even number of hexadecimal digits, or @FILE");
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(wrong()) };
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(wrong);
    pairs.iter().map(|&[high, low]| Ok((digit(high)? << 4 | digit(low)?) as u8)).collect()
}

impl Argument {
    fn parse(text: &str) -> Result<Argument, String> {
        let form = || format!("`{text}` is no value of `--arg`: expected TYPE=VALUE, TYPE:N=FILL or raw=HEX");
        if let Some(value) = text.strip_prefix("raw=") {
            let fill = match value.strip_prefix('@') {
                Some(path) => Fill::File(path.to_owned()),
                None => Fill::Number(hex(value)?),
            };
            return Ok(Argument { ty: "raw".into(), count: None, fill });
        }
        let (ty, value) = text.split_once('=').ok_or_else(form)?;
        let (ty, count) = match ty.split_once(':') {
            Some((ty, count)) => (ty, Some(count.parse().map_err(|_| form())?)),
            None => (ty, None),
        };
        width(ty).ok_or_else(|| format!("`{ty}` in `{text}` is no type: {TYPES} are"))?;
        let fill = match (count, value) {
            (Some(_), "iota") => Fill::Iota,
            (Some(_), "random") => Fill::Random,
            (Some(_), "none") => Fill::None,
            (Some(_), value) if value.starts_with('@') => Fill::File(value[1..].to_owned()),
            _ => Fill::Number(number(ty, value)?),
        };
        Ok(Argument { ty: ty.to_owned(), count, fill })
    }

    /// The bytes of the parameter, and the address of a buffer.
    pub fn place(&self, device: &Device) -> Result<(Vec<u8>, Option<u64>), Box<dyn Error>> {
        let (count, fill) = match (self.count, &self.fill) {
            (None, Fill::Number(bytes)) => return Ok((bytes.clone(), None)),
            (None, Fill::File(path)) => return Ok((read(path)?, None)),
            (count, fill) => (count.unwrap_or(0), fill),
        };
        let size = count.saturating_mul(width(&self.ty).unwrap_or(4));
        let address = device.memory.alloc(size as u64)?;
        let mut state = 1u64;
        match fill {
            Fill::Number(bytes) => device.memory.fill(address, bytes, count as u64)?,
            Fill::None => {}
            Fill::Iota => {
                let contents: Vec<u8> = (0..count).flat_map(|index| rounded(&self.ty, index as f64)).collect();
                device.memory.write(address, &contents)?;
            }
            Fill::Random => {
                let mut one = |_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let unit = (state >> 40) as f64 / f64::from(1 << 24);
                    rounded(&self.ty, if self.ty.contains('f') { unit } else { (unit * 256.0).floor() })
                };
                let contents: Vec<u8> = (0..count).flat_map(&mut one).collect();
                device.memory.write(address, &contents)?;
            }
            // A file fills it from the start; what is left stays unwritten.
            Fill::File(path) => {
                let contents = read(path)?;
                if contents.len() > size {
                    return Err(format!("{path} has {} bytes, and the buffer {size}", contents.len()).into());
                }
                device.memory.write(address, &contents)?;
            }
        }
        Ok((address.to_le_bytes().to_vec(), Some(address)))
    }

    /// The contents of a buffer as text.
    pub fn show(&self, device: &Device, address: u64) -> Result<String, Box<dyn Error>> {
        let width = width(&self.ty).unwrap_or(4);
        let mut bytes = vec![0; self.count.unwrap_or(1) * width];
        device.memory.read(address, &mut bytes)?;
        let one = |b: &[u8]| {
            let mut wide = [0; 8];
            wide[..b.len()].copy_from_slice(b);
            let value = u64::from_le_bytes(wide);
            match self.ty.as_str() {
                "f16" => half::f16::from_bits(value as u16).to_string(),
                "bf16" => half::bf16::from_bits(value as u16).to_string(),
                "s8" => (value as i8).to_string(),
                "s16" => (value as i16).to_string(),
                "f32" => f32::from_bits(value as u32).to_string(),
                "f64" => f64::from_bits(value).to_string(),
                "s32" => (value as i32).to_string(),
                "s64" => (value as i64).to_string(),
                _ => value.to_string(),
            }
        };
        Ok(bytes.chunks_exact(width).map(one).collect::<Vec<_>>().join(" "))
    }
}
