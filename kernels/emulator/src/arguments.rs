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

/// An argument of the kernel.
#[derive(Debug)]
pub struct Argument {
    ty: String,
    count: Option<usize>,
    value: String,
}

/// Reads the words of the command line.
pub fn parse(words: &[String]) -> Result<Command, String> {
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
        let value = words.next().ok_or_else(|| format!("`{word}` needs a value"))?;
        let wrong = || format!("`{value}` is no value of `{word}`");
        match word.as_str() {
            "--chip" => command.chip = Chip::parse(value).ok_or_else(wrong)?,
            "--grid" => command.grid = dims(value).ok_or_else(wrong)?,
            "--block" => command.block = dims(value).ok_or_else(wrong)?,
            "--shared" => command.shared = value.parse().map_err(|_| wrong())?,
            "--print" => command.print.push(value.parse().map_err(|_| wrong())?),
            "--steps" => command.steps = Some(value.parse().map_err(|_| wrong())?),
            "--threads" => command.threads = Some(value.parse().map_err(|_| wrong())?),
            "--arg" => {
                let (ty, value) = value.split_once('=').ok_or_else(wrong)?;
                let (ty, count) = match ty.split_once(':') {
                    Some((ty, count)) => (ty, Some(count.parse().map_err(|_| wrong())?)),
                    None => (ty, None),
                };
                width(ty).ok_or_else(wrong)?;
                command.arguments.push(Argument { ty: ty.to_owned(), count, value: value.to_owned() });
            }
            _ => return Err(format!("`{word}` is no option")),
        }
    }
    Ok(command)
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

fn width(ty: &str) -> Option<usize> {
    Some(match ty {
        "u8" | "s8" => 1,
        "u16" | "s16" | "f16" | "bf16" => 2,
        "u32" | "s32" | "f32" => 4,
        "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}

impl Argument {
    fn bytes(&self, value: f64) -> Vec<u8> {
        match self.ty.as_str() {
            "f16" => half::f16::from_f64(value).to_le_bytes().to_vec(),
            "bf16" => half::bf16::from_f64(value).to_le_bytes().to_vec(),
            "f32" => (value as f32).to_le_bytes().to_vec(),
            "f64" => value.to_le_bytes().to_vec(),
            ty => (value as i64).to_le_bytes()[..width(ty).unwrap_or(4)].to_vec(),
        }
    }

    /// The bytes of the parameter, and the address of a buffer.
    pub fn place(&self, device: &Device) -> Result<(Vec<u8>, Option<u64>), Box<dyn Error>> {
        let number = || -> Result<Vec<u8>, String> {
            // Whole numbers of 64 bits are not all f64.
            if let (Ok(whole), false) = (self.value.parse::<i128>(), self.ty.contains('f')) {
                return Ok(whole.to_le_bytes()[..width(&self.ty).unwrap_or(4)].to_vec());
            }
            self.value.parse().map(|value| self.bytes(value)).map_err(|_| format!("`{}` is no number", self.value))
        };
        let Some(count) = self.count else { return Ok((number()?, None)) };
        let address = device.memory.alloc((count * width(&self.ty).unwrap_or(4)) as u64)?;
        let mut state = 1u64;
        let contents: Vec<u8> = match self.value.as_str() {
            "none" => vec![],
            "iota" => (0..count).flat_map(|index| self.bytes(index as f64)).collect(),
            "random" => (0..count)
                .flat_map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let unit = (state >> 40) as f64 / f64::from(1 << 24);
                    self.bytes(if self.ty.contains('f') { unit } else { (unit * 256.0).floor() })
                })
                .collect(),
            // A file fills it from the start; what is left stays unwritten.
            file if file.starts_with('@') => std::fs::read(&file[1..]).map_err(|error| format!("{file}: {error}"))?,
            _ => number()?.repeat(count),
        };
        device.memory.write(address, &contents)?;
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
