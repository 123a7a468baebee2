//! The floating-point mode that kernels run in: round to nearest, denormals are zero in and out, no traps. It is part of
//! a plan's numbers, so it is set around kernels whatever the thread's mode was; Rust code never runs in it.

#![expect(unsafe_code, reason = "the control register has no safe interface")]

use std::arch::asm;

/// All exceptions masked, flush to zero, denormals are zero.
const KERNEL: u32 = 0x1f80 | 0x8000 | 0x0040;

/// Kernel mode until dropped.
#[derive(Debug)]
pub struct KernelMode {
    before: u32,
}

impl KernelMode {
    /// Enters kernel mode on this thread.
    pub fn enter() -> KernelMode {
        let mut before = 0u32;
        // SAFETY: stores the control register into a live variable.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut before, options(nostack, preserves_flags)) };
        load(KERNEL);
        KernelMode { before }
    }
}

impl Drop for KernelMode {
    fn drop(&mut self) {
        load(self.before);
    }
}

fn load(mode: u32) {
    // SAFETY: the value comes from the register itself or is a valid constant that masks all exceptions.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn the_mode_is_restored() {
        let denormal = || black_box(f32::MIN_POSITIVE) * black_box(0.5);
        assert!(denormal() > 0.0);
        let mode = KernelMode::enter();
        let flushed = denormal().to_bits();
        drop(mode);
        assert_eq!(flushed, 0);
        assert!(denormal() > 0.0);
    }
}
