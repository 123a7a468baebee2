//! Turns LLVM's relocatable object into one blob of code and constants that runs wherever it is mapped.
//!
//! Only references between the sections of the object are accepted, and only relative to the instruction; anything
//! else (a library call, an absolute address) is refused by name.

use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, RelocationTarget, SectionIndex};

use crate::Object;

/// Alignment of the blob and of each section in it.
const ALIGN: usize = 64;

/// Links the sections of `elf`; `symbols` are the kernels, in order.
///
/// # Errors
/// A sentence naming the section, symbol or relocation that cannot be used.
pub fn link(elf: &[u8], symbols: &[String]) -> Result<Object, String> {
    let file = ElfFile64::<object::LittleEndian>::parse(elf).map_err(|error| error.to_string())?;
    let mut code = Vec::new();
    let mut placed: Vec<(SectionIndex, usize)> = Vec::new();
    for section in file.sections() {
        let name = section.name().map_err(|error| error.to_string())?;
        let wanted = name.starts_with(".text") || name.starts_with(".rodata");
        if !wanted {
            if (name.starts_with(".data") || name.starts_with(".bss")) && section.size() > 0 {
                return Err(format!("section {name} is writable"));
            }
            continue;
        }
        let align = (section.align() as usize).max(ALIGN);
        code.resize(code.len().next_multiple_of(align), 0xcc);
        placed.push((section.index(), code.len()));
        code.extend_from_slice(section.data().map_err(|error| error.to_string())?);
    }
    let base = |index: SectionIndex| placed.iter().find(|(placed, _)| *placed == index).map(|(_, base)| *base);
    for section in file.sections() {
        let Some(section_base) = base(section.index()) else { continue };
        for (offset, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                return Err("not an ELF relocation".into());
            };
            let RelocationTarget::Symbol(index) = relocation.target() else {
                return Err("a relocation without a symbol".into());
            };
            let symbol = file.symbol_by_index(index).map_err(|error| error.to_string())?;
            let name = symbol.name().unwrap_or("?");
            let target = symbol
                .section_index()
                .and_then(base)
                .ok_or_else(|| format!("undefined symbol '{name}': kernels may call nothing"))?;
            if !matches!(r_type, object::elf::R_X86_64_PC32 | object::elf::R_X86_64_PLT32) {
                return Err(format!("relocation type {} of '{name}' is not relative", r_type.0));
            }
            let place = section_base + offset as usize;
            let value = target as i64 + symbol.address() as i64 + relocation.addend() - place as i64;
            let value = i32::try_from(value).map_err(|_| format!("'{name}' is too far away"))?;
            code[place..place + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    let entry = |name: &String| {
        let symbol = file.symbol_by_name(name).ok_or_else(|| format!("kernel '{name}' is missing"))?;
        let section = symbol.section_index().and_then(base).ok_or_else(|| format!("kernel '{name}' has no code"))?;
        Ok(section as u64 + symbol.address())
    };
    let entries = symbols.iter().map(entry).collect::<Result<Vec<u64>, String>>()?;
    Ok(Object { entries, code })
}
