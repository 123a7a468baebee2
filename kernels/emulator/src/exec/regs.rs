//! The registers of a warp: vectors of 32 lanes in banks of 32 and 64 bits, and predicates as masks. Literals and special
//! registers lie in the same banks and are written once when the warp starts, so every operand is an index.

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// One 32-bit register of all lanes. Narrower values have zeros above.
pub(crate) type Lanes32 = [u32; LANES];
/// One 64-bit register of all lanes.
pub(crate) type Lanes64 = [u64; LANES];

/// The register banks of one warp.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Regs {
    pub(crate) r32: Vec<Lanes32>,
    pub(crate) r64: Vec<Lanes64>,
    pub(crate) p: Vec<u32>,
}

impl Regs {
    pub(crate) fn put32(&mut self, d: u32, values: &Lanes32, mask: u32) {
        let target = &mut self.r32[d as usize];
        if mask == u32::MAX {
            *target = *values;
        } else {
            for lane in 0..LANES {
                if mask >> lane & 1 != 0 {
                    target[lane] = values[lane];
                }
            }
        }
    }

    pub(crate) fn put64(&mut self, d: u32, values: &Lanes64, mask: u32) {
        let target = &mut self.r64[d as usize];
        if mask == u32::MAX {
            *target = *values;
        } else {
            for lane in 0..LANES {
                if mask >> lane & 1 != 0 {
                    target[lane] = values[lane];
                }
            }
        }
    }

    pub(crate) fn put_pred(&mut self, d: u32, values: u32, mask: u32) {
        let target = &mut self.p[d as usize];
        *target = *target & !mask | values & mask;
    }
}

/// Operands of an arithmetic instruction as indices into the banks that its function knows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Args {
    pub(crate) d: u32,
    pub(crate) d2: u32,
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) c: u32,
    /// What else the function needs: rounding, saturation, a literal.
    pub(crate) flags: u64,
}

/// What an arithmetic instruction does to the lanes of a mask.
pub(crate) type Exec = fn(&mut Regs, &Args, u32);

/// An [`Exec`] that computes each lane of the result from lanes of the operands:
/// `lanes!(r32 <- r32 r64 |a, b| expression)`, with `x` naming the [`Args`] where a third name is given after `;`.
macro_rules! lanes {
    ($out:ident <- $a_bank:ident |$a:ident| $e:expr) => {
        lanes!($out <- $a_bank |$a; _x| $e)
    };
    ($out:ident <- $a_bank:ident |$a:ident; $x:pat_param| $e:expr) => {{
        fn run(regs: &mut $crate::exec::regs::Regs, x: &$crate::exec::regs::Args, mask: u32) {
            let mut out = [0; 32];
            let $x = x;
            let source = &regs.$a_bank[x.a as usize];
            for (slot, &$a) in out.iter_mut().zip(source) {
                *slot = $e;
            }
            lanes!(@put regs $out x out mask);
        }
        run as $crate::exec::regs::Exec
    }};
    ($out:ident <- $a_bank:ident $b_bank:ident |$a:ident, $b:ident| $e:expr) => {
        lanes!($out <- $a_bank $b_bank |$a, $b; _x| $e)
    };
    ($out:ident <- $a_bank:ident $b_bank:ident |$a:ident, $b:ident; $x:pat_param| $e:expr) => {{
        fn run(regs: &mut $crate::exec::regs::Regs, x: &$crate::exec::regs::Args, mask: u32) {
            let mut out = [0; 32];
            let $x = x;
            let (first, second) = (&regs.$a_bank[x.a as usize], &regs.$b_bank[x.b as usize]);
            for lane in 0..32 {
                let ($a, $b) = (first[lane], second[lane]);
                out[lane] = $e;
            }
            lanes!(@put regs $out x out mask);
        }
        run as $crate::exec::regs::Exec
    }};
    ($out:ident <- $a_bank:ident $b_bank:ident $c_bank:ident |$a:ident, $b:ident, $c:ident| $e:expr) => {
        lanes!($out <- $a_bank $b_bank $c_bank |$a, $b, $c; _x| $e)
    };
    ($out:ident <- $a_bank:ident $b_bank:ident $c_bank:ident |$a:ident, $b:ident, $c:ident; $x:pat_param| $e:expr) => {{
        fn run(regs: &mut $crate::exec::regs::Regs, x: &$crate::exec::regs::Args, mask: u32) {
            let mut out = [0; 32];
            let $x = x;
            let (first, second, third) =
                (&regs.$a_bank[x.a as usize], &regs.$b_bank[x.b as usize], &regs.$c_bank[x.c as usize]);
            for lane in 0..32 {
                let ($a, $b, $c) = (first[lane], second[lane], third[lane]);
                out[lane] = $e;
            }
            lanes!(@put regs $out x out mask);
        }
        run as $crate::exec::regs::Exec
    }};
    (@put $regs:ident r32 $x:ident $values:ident $mask:ident) => { $regs.put32($x.d, &$values, $mask) };
    (@put $regs:ident r64 $x:ident $values:ident $mask:ident) => { $regs.put64($x.d, &$values, $mask) };
    (@put $regs:ident p $x:ident $values:ident $mask:ident) => {{
        let values: [bool; 32] = $values.map(|value: u32| value != 0);
        let bits = (0..32).fold(0u32, |bits, lane| bits | u32::from(values[lane]) << lane);
        $regs.put_pred($x.d, bits, $mask)
    }};
}
pub(crate) use lanes;
