//! Device attributes by their documented numbers. What a device has is told; what the emulator lacks is 0.

use lathe_emulator::Chip;

use crate::codes::{Answer, invalid};

/// The last attribute that the documentation of CUDA 13 lists.
const LAST: u32 = 148;

/// Sizes that no calculation of the emulator rests on, but programs ask for: second-level cache in bytes, bus width in
/// bits, memory clock and clock in kHz. From the data sheets of A100, A10, L40S and H100.
fn sheet(chip: Chip) -> (i32, i32, i32, i32) {
    match chip {
        Chip::Sm80 => (40 << 20, 5120, 1_215_000, 1_410_000),
        Chip::Sm86 => (6 << 20, 384, 6_251_000, 1_695_000),
        Chip::Sm89 => (96 << 20, 384, 9_001_000, 2_520_000),
        Chip::Sm90 => (50 << 20, 5120, 2_619_000, 1_980_000),
    }
}

/// What every device has.
const COMMON: &[(u32, i32)] = &[
    // Threads of a CTA in all and in x, y and z; CTAs of a grid in x, y and z.
    (1, 1024),
    (2, 1024),
    (3, 1024),
    (4, 64),
    (5, i32::MAX),
    (6, 65_535),
    (7, 65_535),
    // Shared memory of a CTA unasked, constant memory, lanes of a warp, largest pitch, registers of a CTA.
    (8, 48 << 10),
    (9, 64 << 10),
    (10, 32),
    (11, i32::MAX),
    (12, 64 << 10),
    // Alignment of textures and surfaces.
    (14, 512),
    (30, 512),
    (51, 32),
    // Copies overlap with kernels, and kernels with each other; errors in memory are corrected; copy engines.
    (15, 1),
    (31, 1),
    (32, 1),
    (40, 1),
    // One address space, stream priorities, cached loads of global and local memory.
    (41, 1),
    (78, 1),
    (79, 1),
    (80, 1),
    // Registers of a multiprocessor, f32 to f64 speed, preemption, cooperative launches, registered host memory.
    (82, 64 << 10),
    (87, 2),
    (90, 1),
    (95, 1),
    (99, 1),
    // Shared memory of a CTA that the system takes; memory pools.
    (111, 1024),
    (115, 1),
];

/// An attribute of a device.
pub fn device(chip: Chip, ordinal: usize, attribute: u32) -> Answer<i32> {
    let (major, minor) = chip.capability();
    let (cache, bus, memory_clock, clock) = sheet(chip);
    let of_chip = match attribute {
        13 => clock,
        16 => chip.sms() as i32,
        33 => ordinal as i32 + 1,
        36 => memory_clock,
        37 => bus,
        38 => cache,
        39 => chip.threads_per_sm() as i32,
        75 => major as i32,
        76 => minor as i32,
        81 => chip.shared_limit() as i32 + 1024,
        97 => chip.shared_limit() as i32,
        106 => chip.ctas_per_sm() as i32,
        0 => return invalid("device attribute 0"),
        _ if attribute > LAST => return invalid(format!("device attribute {attribute}")),
        _ => COMMON.iter().find(|(number, _)| *number == attribute).map_or(0, |&(_, value)| value),
    };
    Ok(of_chip)
}
