//! The registers of a warp: vectors of 32 lanes in banks of 32 and 64 bits, and predicates as masks. Literals and special
//! registers lie in the same banks and are written once when the warp starts, so every operand is an index.

#![expect(clippy::inline_always, reason = "what a processor's own form calls must be compiled in that form")]

use std::sync::OnceLock;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// One 32-bit register of all lanes. Narrower values have zeros above.
pub(crate) type Lanes32 = [u32; LANES];
/// One 64-bit register of all lanes.
pub(crate) type Lanes64 = [u64; LANES];

/// The value that all lanes hold, if they hold one.
pub(crate) fn uniform(lanes: &Lanes32) -> Option<u32> {
    let differs = lanes.iter().fold(0, |bits, &lane| bits | (lane ^ lanes[0]));
    (differs == 0).then_some(lanes[0])
}

/// The register banks of one warp.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Regs {
    pub(crate) r32: Vec<Lanes32>,
    pub(crate) r64: Vec<Lanes64>,
    pub(crate) p: Vec<u32>,
}

impl Regs {
    #[inline(always)]
    pub(crate) fn put32(&mut self, d: u32, values: &Lanes32, mask: u32) {
        let target = &mut self.r32[d as usize];
        for lane in 0..LANES {
            target[lane] = if mask >> lane & 1 != 0 { values[lane] } else { target[lane] };
        }
    }

    #[inline(always)]
    pub(crate) fn put64(&mut self, d: u32, values: &Lanes64, mask: u32) {
        let target = &mut self.r64[d as usize];
        for lane in 0..LANES {
            target[lane] = if mask >> lane & 1 != 0 { values[lane] } else { target[lane] };
        }
    }

    #[inline(always)]
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

/// The [`level`] of processors with AVX-512.
pub(crate) const AVX512: u32 = 2;

/// Which of the compiled forms of [`vectored`] the machine runs: 0 plain, 1 with AVX2 and FMA, 2 with AVX-512.
pub(crate) fn level() -> u32 {
    static LEVEL: OnceLock<u32> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let v3 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let v4 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            u32::from(v3) + u32::from(v3 && v4)
        }
        #[cfg(not(target_arch = "x86_64"))]
        0
    })
}

/// A function pointer whose body is compiled once for each [`level`], chosen when it is taken: `vectored!(|a: T| body)`.
/// This is what makes 32 lanes run as a few vectors in a build for any processor.
macro_rules! vectored {
    (|$($name:ident: $ty:ty),*| $body:expr) => {{
        #[inline(always)]
        fn plain($($name: $ty),*) {
            $body
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn v3() -> fn($($ty),*) {
            |$($name),*| plain($($name),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn v4() -> fn($($ty),*) {
            |$($name),*| plain($($name),*)
        }
        #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "calls what needs features of the processor"))]
        fn choose() -> fn($($ty),*) {
            match $crate::exec::regs::level() {
                // SAFETY: the level says that the processor has the features that are enabled there.
                #[cfg(target_arch = "x86_64")]
                $crate::exec::regs::AVX512 => unsafe { v4() },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                1 => unsafe { v3() },
                _ => plain,
            }
        }
        choose()
    }};
}
pub(crate) use vectored;

/// What an arithmetic instruction does to the lanes of a mask, as a vector: `exec!(|regs, x, mask| statements)`.
macro_rules! exec {
    (|$regs:ident, $x:ident, $mask:ident| $body:expr) => {
        $crate::exec::regs::vectored!(|$regs: &mut $crate::exec::regs::Regs,
                                       $x: &$crate::exec::regs::Args,
                                       $mask: u32| $body)
    };
}
pub(crate) use exec;

/// An [`Exec`] that computes each lane of the result from lanes of the operands:
/// `lanes!(r32 <- r32 r64 |a, b| expression)`, with `x` naming the [`Args`] where a third name is given after `;`.
macro_rules! lanes {
    ($out:ident <- $a_bank:ident |$a:ident| $e:expr) => {
        lanes!($out <- $a_bank |$a; _x| $e)
    };
    ($out:ident <- $a_bank:ident |$a:ident; $x:pat_param| $e:expr) => {
        $crate::exec::regs::exec!(|regs, args, mask| {
            let mut out = [0; 32];
            let $x = args;
            let source = &regs.$a_bank[args.a as usize];
            for (slot, &$a) in out.iter_mut().zip(source) {
                *slot = $e;
            }
            lanes!(@put regs $out args out mask);
        })
    };
    ($out:ident <- $a_bank:ident $b_bank:ident |$a:ident, $b:ident| $e:expr) => {
        lanes!($out <- $a_bank $b_bank |$a, $b; _x| $e)
    };
    ($out:ident <- $a_bank:ident $b_bank:ident |$a:ident, $b:ident; $x:pat_param| $e:expr) => {
        $crate::exec::regs::exec!(|regs, args, mask| {
            let mut out = [0; 32];
            let $x = args;
            let (first, second) = (&regs.$a_bank[args.a as usize], &regs.$b_bank[args.b as usize]);
            for lane in 0..32 {
                let ($a, $b) = (first[lane], second[lane]);
                out[lane] = $e;
            }
            lanes!(@put regs $out args out mask);
        })
    };
    ($out:ident <- $a_bank:ident $b_bank:ident $c_bank:ident |$a:ident, $b:ident, $c:ident| $e:expr) => {
        lanes!($out <- $a_bank $b_bank $c_bank |$a, $b, $c; _x| $e)
    };
    ($out:ident <- $a_bank:ident $b_bank:ident $c_bank:ident |$a:ident, $b:ident, $c:ident; $x:pat_param| $e:expr) => {
        $crate::exec::regs::exec!(|regs, args, mask| {
            let mut out = [0; 32];
            let $x = args;
            let (first, second, third) =
                (&regs.$a_bank[args.a as usize], &regs.$b_bank[args.b as usize], &regs.$c_bank[args.c as usize]);
            for lane in 0..32 {
                let ($a, $b, $c) = (first[lane], second[lane], third[lane]);
                out[lane] = $e;
            }
            lanes!(@put regs $out args out mask);
        })
    };
    (@put $regs:ident r32 $x:ident $values:ident $mask:ident) => { $regs.put32($x.d, &$values, $mask) };
    (@put $regs:ident r64 $x:ident $values:ident $mask:ident) => { $regs.put64($x.d, &$values, $mask) };
    (@put $regs:ident p $x:ident $values:ident $mask:ident) => {{
        let values: [bool; 32] = $values.map(|value: u32| value != 0);
        let bits = (0..32).fold(0u32, |bits, lane| bits | u32::from(values[lane]) << lane);
        $regs.put_pred($x.d, bits, $mask)
    }};
}
pub(crate) use lanes;
