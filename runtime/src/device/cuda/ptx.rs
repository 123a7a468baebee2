//! What is read from a plan's PTX before a driver gets it: which kernels there are, and what each takes. A driver reads as
//! many arguments as a kernel declares, however many it is given.

use lathe_plan::program::{CodeObject, Program};

use crate::error::{Error, Result};

/// What stands before a kernel's name.
const ENTRY: &str = ".entry ";
/// The instruction of a kernel that waits by itself for the kernels before it to end.
const WAIT: &str = "griddepcontrol.wait";
/// What begins the declaration of an argument.
const PARAM: &str = ".param";
/// The types of arguments of 8 bytes.
const WORDS: [&str; 4] = [".u64", ".b64", ".s64", ".f64"];
/// What begins the declaration of an array that the threads of a block share.
const SHARED: &str = ".shared";

/// A kernel in the text of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it waits by itself for the kernels before it to end.
    pub waits: bool,
    /// How many arguments it takes, if each has 8 bytes.
    arguments: Option<usize>,
    /// Bytes that a block of its threads shares.
    shared: u64,
}

/// The text of a code object, and its kernels.
pub fn entries(object: &CodeObject) -> Result<(&str, Vec<Entry<'_>>)> {
    let wrong = |what: &str| Error::Program(format!("its PTX {what}"));
    let text = std::str::from_utf8(&object.code).map_err(|_| wrong("is no text"))?;
    let entry = |&at: &u64| {
        let from = usize::try_from(at).ok().and_then(|at| text.get(at..)).ok_or_else(|| wrong("lacks a kernel"))?;
        let (name, rest) = from.split_once('(').ok_or_else(|| wrong("has a kernel without parameters"))?;
        let (declared, body) = rest.split_once(')').ok_or_else(|| wrong("has a kernel without an end"))?;
        let body = &body[..body.find(ENTRY).unwrap_or(body.len())];
        let is_word = |declaration: &str| WORDS.iter().any(|word| declaration.split_whitespace().nth(1) == Some(word));
        let mut arguments = declared.split(',').map(str::trim).filter(|declaration| declaration.starts_with(PARAM));
        let count = arguments.clone().count();
        Ok(Entry {
            name,
            waits: body.contains(WAIT),
            arguments: arguments.all(is_word).then_some(count),
            shared: body.lines().filter_map(shared_bytes).sum(),
        })
    };
    Ok((text, object.entries.iter().map(entry).collect::<Result<Vec<_>>>()?))
}

/// The bytes of a shared array that a line declares (`.shared .align 16 .b8 sums[9216];`).
fn shared_bytes(line: &str) -> Option<u64> {
    let line = line.trim().strip_prefix(SHARED)?;
    let (before, rest) = line.split_once('[')?;
    let width = before.split_whitespace().rev().nth(1)?.get(2..)?.parse::<u64>().ok()?;
    Some(rest.split(']').next()?.parse::<u64>().ok()?.saturating_mul(width / 8))
}

/// Checks that kernels take what launches give them, and that a GPU which gives a block so many bytes of shared memory has
/// enough.
pub fn check(entries: &[Entry<'_>], program: &Program, most_shared: u64) -> Result<()> {
    if entries.len() != program.kernels.len() {
        let (found, expected) = (entries.len(), program.kernels.len());
        return Err(Error::Program(format!("its code has {found} kernels, expected {expected}")));
    }
    for (entry, kernel) in entries.iter().zip(&program.kernels) {
        // Buffers, parameters, and the number of units.
        let expected = kernel.operands.len() + kernel.params as usize + 1;
        if entry.arguments != Some(expected) {
            let found = entry.arguments.map_or_else(|| "others".to_owned(), |count| count.to_string());
            let message = format!(
                "kernel `{}` is launched with {expected} arguments of 8 bytes each, but its PTX takes {found}",
                kernel.name
            );
            return Err(Error::Program(message));
        }
        if entry.shared > most_shared {
            return Err(Error::SharedMemory { kernel: kernel.name.clone(), needed: entry.shared, found: most_shared });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lathe_plan::program::{Access, Grid, Kernel, Operand};

    use super::*;

    const TEXT: &str = ".visible .entry kernel0(\n\t.param .u64 .ptr .global .align 1 kernel0_param_0,\n\t.param .u64 \
                        kernel0_param_1\n)\n{\n\t.shared .align 16 .b8 sums[9216];\n\t.shared .align 4 .b32 more[4];\n}\n\
                        .visible .entry kernel1(\n\t.param .u64 kernel1_param_0,\n\t.param .u32 kernel1_param_1\n)\n{\n\
                        griddepcontrol.wait;\n}\n.visible .entry kernel2(\n)\n{\n}";

    fn object(code: &str, entries: &[u64]) -> CodeObject {
        let code = code.as_bytes().to_vec();
        CodeObject { target: "sm_90".into(), code, entries: entries.to_vec(), ..CodeObject::default() }
    }

    fn found() -> Vec<Entry<'static>> {
        let at = |name: &str| TEXT.find(name).unwrap() as u64;
        let object = object(TEXT, &["kernel0(", "kernel1(", "kernel2("].map(at));
        let names = ["kernel0", "kernel1", "kernel2"];
        let (_, entries) = entries(&object).unwrap();
        entries.iter().zip(names).map(|(entry, name)| Entry { name, ..*entry }).collect()
    }

    #[test]
    fn kernels_are_read_from_where_they_stand() {
        let entry = |name, waits, arguments, shared| Entry { name, waits, arguments, shared };
        assert_eq!(
            found(),
            [
                entry("kernel0", false, Some(2), 9216 + 16),
                entry("kernel1", true, None, 0),
                entry("kernel2", false, Some(0), 0)
            ]
        );
        assert!(entries(&object(TEXT, &[10_000])).is_err());
        assert!(entries(&object("kernel0", &[0])).is_err());
        assert!(entries(&object("kernel0(", &[0])).is_err());
    }

    #[test]
    fn kernels_that_take_something_else_or_too_much_are_refused() {
        let kernel = |operands: usize| Kernel {
            name: format!("of {operands}"),
            recipe: String::new(),
            params: 0,
            grid: Grid::default(),
            operands: vec![Operand { access: Access::Read, extent: Vec::new() }; operands],
        };
        let program = |operands: &[usize]| Program {
            kernels: operands.iter().map(|&operands| kernel(operands)).collect(),
            ..Program::default()
        };
        let entries = found();
        let say = |entries, operands: &[usize], most| check(entries, &program(operands), most).unwrap_err().to_string();
        assert!(check(&entries[..1], &program(&[1]), 49_152).is_ok());
        let told = say(&entries[..1], &[2], 49_152);
        assert!(told.contains("`of 2` is launched with 3 arguments of 8 bytes each, but its PTX takes 2"), "{told}");
        assert!(say(&entries[1..2], &[1], 49_152).contains("takes others"));
        assert!(say(&entries, &[1], 49_152).contains("3 kernels, expected 1"));
        let told = say(&entries[..1], &[1], 9216);
        assert!(told.contains("9232") && told.contains("9216") && told.contains("--target"), "{told}");
    }
}
