//! Random programs against an interpreter of one thread at a time, which shares nothing with the emulator. A failure names
//! its seed and prints the program.

use std::fmt::Write as _;

use lathe_emulator::{Chip, Device, Launch, Module, Options};

/// Threads of a run: two warps, the second one not full.
const THREADS: usize = 56;
/// Registers of each kind.
const WORDS: usize = 8;
const WIDE: usize = 4;
const FLOATS: usize = 6;
const PREDICATES: usize = 4;

/// `SplitMix64` (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Any bits, and often those at which arithmetic changes its ways.
    fn word(&mut self) -> u32 {
        const EDGES: [u32; 8] = [0, 1, 31, 32, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xffff];
        if self.below(3) == 0 { EDGES[self.below(EDGES.len())] } else { self.next() as u32 }
    }

    fn float(&mut self) -> f32 {
        const EDGES: [u32; 10] = [
            0,
            0x8000_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            1,
            0x007f_ffff,
            0x0080_0000,
            0x7f7f_ffff,
            0x3f80_0000,
        ];
        match self.below(4) {
            0 => f32::from_bits(EDGES[self.below(EDGES.len())]),
            1 => f32::from_bits(self.next() as u32),
            // Close to each other, so that sums cancel.
            _ => (self.next() as u32 as f32 / 2f32.powi(31) - 1.0) * 8.0,
        }
    }
}

/// What a thread holds.
#[derive(Clone)]
struct State {
    r: [u32; WORDS],
    d: [u64; WIDE],
    f: [f32; FLOATS],
    p: [bool; PREDICATES],
}

/// An instruction: its text, and what it does to a thread.
type Step = (String, Box<dyn Fn(&mut State)>);

fn integer(random: &mut Random) -> Step {
    let (d, a, b, c) = (random.below(WORDS), random.below(WORDS), random.below(WORDS), random.below(WORDS));
    let (x, y, z) = (random.below(WIDE), random.below(WIDE), random.below(WIDE));
    macro_rules! two {
        ($name:literal, |$p:ident, $q:ident| $e:expr) => {
            (
                format!("{} %r{d}, %r{a}, %r{b};", $name),
                Box::new(move |s: &mut State| {
                    let ($p, $q) = (s.r[a], s.r[b]);
                    s.r[d] = $e;
                }) as Box<dyn Fn(&mut State)>,
            )
        };
    }
    macro_rules! three {
        ($name:literal, |$p:ident, $q:ident, $t:ident| $e:expr) => {
            (
                format!("{} %r{d}, %r{a}, %r{b}, %r{c};", $name),
                Box::new(move |s: &mut State| {
                    let ($p, $q, $t) = (s.r[a], s.r[b], s.r[c]);
                    s.r[d] = $e;
                }) as Box<dyn Fn(&mut State)>,
            )
        };
    }
    macro_rules! one {
        ($name:literal, |$p:ident| $e:expr) => {
            (
                format!("{} %r{d}, %r{a};", $name),
                Box::new(move |s: &mut State| {
                    let $p = s.r[a];
                    s.r[d] = $e;
                }) as Box<dyn Fn(&mut State)>,
            )
        };
    }
    macro_rules! wide {
        ($name:literal, |$p:ident, $q:ident| $e:expr) => {
            (
                format!("{} %rd{x}, %rd{y}, %rd{z};", $name),
                Box::new(move |s: &mut State| {
                    let ($p, $q) = (s.d[y], s.d[z]);
                    s.d[x] = $e;
                }) as Box<dyn Fn(&mut State)>,
            )
        };
    }
    match random.below(49) {
        0 => two!("add.s32", |p, q| p.wrapping_add(q)),
        1 => two!("sub.u32", |p, q| p.wrapping_sub(q)),
        2 => two!("mul.lo.s32", |p, q| p.wrapping_mul(q)),
        3 => two!("mul.hi.u32", |p, q| ((u64::from(p) * u64::from(q)) >> 32) as u32),
        4 => two!("mul.hi.s32", |p, q| ((i64::from(p as i32) * i64::from(q as i32)) >> 32) as u32),
        5 => three!("mad.lo.u32", |p, q, t| p.wrapping_mul(q).wrapping_add(t)),
        6 => two!("and.b32", |p, q| p & q),
        7 => two!("or.b32", |p, q| p | q),
        8 => two!("xor.b32", |p, q| p ^ q),
        9 => one!("not.b32", |p| !p),
        10 => two!("shl.b32", |p, q| if q >= 32 { 0 } else { p << q }),
        11 => two!("shr.u32", |p, q| if q >= 32 { 0 } else { p >> q }),
        12 => two!("shr.s32", |p, q| (p as i32 >> q.min(31)) as u32),
        13 => two!("min.s32", |p, q| (p as i32).min(q as i32) as u32),
        14 => two!("max.u32", |p, q| p.max(q)),
        15 => two!("min.u32", |p, q| p.min(q)),
        16 => one!("neg.s32", |p| 0u32.wrapping_sub(p)),
        17 => one!("abs.s32", |p| if p as i32 >= 0 { p } else { 0u32.wrapping_sub(p) }),
        18 => one!("popc.b32", |p| (0..32).map(|i| p >> i & 1).sum()),
        19 => one!("clz.b32", |p| (0..32).rev().take_while(|i| p >> i & 1 == 0).count() as u32),
        20 => one!("brev.b32", |p| (0..32).fold(0, |out, i| out << 1 | p >> i & 1)),
        21 => three!("bfe.u32", |p, q, t| {
            let (at, length) = (q & 255, t & 255);
            (0..32).filter(|&i| i < length && at + i < 32).fold(0, |out, i| out | (p >> (at + i) & 1) << i)
        }),
        22 => three!("bfe.s32", |p, q, t| {
            let (at, length) = (q & 255, t & 255);
            if length == 0 {
                0
            } else {
                // Past the field, and past the word, its highest bit is repeated.
                let last = (at + length - 1).min(31);
                (0..32).fold(0, |out, i| out | (p >> (at + i).min(last) & 1) << i)
            }
        }),
        23 => three!("prmt.b32", |p, q, t| {
            let bytes: Vec<u8> = p.to_le_bytes().into_iter().chain(q.to_le_bytes()).collect();
            let pick = |i: u32| {
                let control = (t >> (4 * i)) & 15;
                let byte = bytes[(control & 7) as usize];
                if control & 8 == 0 {
                    byte
                } else if byte & 128 != 0 {
                    255
                } else {
                    0
                }
            };
            u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)])
        }),
        24 => three!("shf.l.wrap.b32", |p, q, t| {
            let n = t % 32;
            if n == 0 { q } else { q << n | p >> (32 - n) }
        }),
        25 => three!("shf.r.clamp.b32", |p, q, t| match t {
            0 => p,
            1..=31 => p >> t | q << (32 - t),
            _ => q,
        }),
        26 => three!("sad.u32", |p, q, t| p.abs_diff(q).wrapping_add(t)),
        27 => three!("dp4a.s32.u32", |p, q, t| {
            let pairs = p.to_le_bytes().into_iter().zip(q.to_le_bytes());
            pairs.fold(t, |sum, (p, q)| sum.wrapping_add((i32::from(p as i8) * i32::from(q)) as u32))
        }),
        28 => {
            let table = random.below(256) as u32;
            let step = move |s: &mut State| {
                let (p, q, t) = (s.r[a], s.r[b], s.r[c]);
                s.r[d] = (0..32).fold(0, |out, i| {
                    let row = (p >> i & 1) << 2 | (q >> i & 1) << 1 | t >> i & 1;
                    out | (table >> row & 1) << i
                });
            };
            (format!("lop3.b32 %r{d}, %r{a}, %r{b}, %r{c}, {table};"), Box::new(step))
        }
        29 => {
            let literal = random.word();
            (
                format!("add.s32 %r{d}, %r{a}, {};", literal as i32),
                Box::new(move |s| s.r[d] = s.r[a].wrapping_add(literal)),
            )
        }
        30 => {
            let p = random.below(PREDICATES);
            (
                format!("selp.b32 %r{d}, %r{a}, %r{b}, %p{p};"),
                Box::new(move |s| s.r[d] = if s.p[p] { s.r[a] } else { s.r[b] }),
            )
        }
        31 => {
            let (p, compare) = (random.below(PREDICATES), random.below(6));
            let name = ["eq", "ne", "lt", "le", "gt", "ge"][compare];
            let step = move |s: &mut State| {
                let order = (s.r[a] as i32).cmp(&(s.r[b] as i32));
                s.p[p] =
                    [order.is_eq(), order.is_ne(), order.is_lt(), order.is_le(), order.is_gt(), order.is_ge()][compare];
            };
            (format!("setp.{name}.s32 %p{p}, %r{a}, %r{b};"), Box::new(step))
        }
        32 => {
            let (p, q, t) = (random.below(PREDICATES), random.below(PREDICATES), random.below(PREDICATES));
            (
                format!("setp.lo.and.u32 %p{p}|%p{q}, %r{a}, %r{b}, !%p{t};"),
                Box::new(move |s| {
                    let (below, third) = (s.r[a] < s.r[b], !s.p[t]);
                    s.p[p] = below && third;
                    // Where both results are one register, the second one stays.
                    s.p[q] = !below && third;
                }),
            )
        }
        33 => {
            let (p, q, t) = (random.below(PREDICATES), random.below(PREDICATES), random.below(PREDICATES));
            (format!("xor.pred %p{p}, %p{q}, %p{t};"), Box::new(move |s| s.p[p] = s.p[q] != s.p[t]))
        }
        34 => wide!("add.s64", |p, q| p.wrapping_add(q)),
        35 => wide!("sub.s64", |p, q| p.wrapping_sub(q)),
        36 => wide!("mul.lo.u64", |p, q| p.wrapping_mul(q)),
        37 => wide!("mul.hi.u64", |p, q| ((u128::from(p) * u128::from(q)) >> 64) as u64),
        38 => wide!("max.s64", |p, q| (p as i64).max(q as i64) as u64),
        39 => (
            format!("mul.wide.s32 %rd{x}, %r{a}, %r{b};"),
            Box::new(move |s| {
                s.d[x] = (i64::from(s.r[a] as i32) * i64::from(s.r[b] as i32)) as u64;
            }),
        ),
        40 => (
            format!("shr.s64 %rd{x}, %rd{y}, %r{a};"),
            Box::new(move |s| {
                s.d[x] = (s.d[y] as i64 >> s.r[a].min(63)) as u64;
            }),
        ),
        41 => (format!("cvt.s64.s32 %rd{x}, %r{a};"), Box::new(move |s| s.d[x] = s.r[a] as i32 as i64 as u64)),
        42 => (format!("cvt.u32.u64 %r{d}, %rd{y};"), Box::new(move |s| s.r[d] = s.d[y] as u32)),
        43 => (format!("cvt.s32.s8 %r{d}, %r{a};"), Box::new(move |s| s.r[d] = s.r[a] as u8 as i8 as i32 as u32)),
        44 => (
            format!("mov.b64 {{%r{d}, %r{}}}, %rd{y};", (d + 1) % WORDS),
            Box::new(move |s| {
                (s.r[d], s.r[(d + 1) % WORDS]) = (s.d[y] as u32, (s.d[y] >> 32) as u32);
            }),
        ),
        45 => one!("bfind.u32", |p| (0..32).rev().find(|i| p >> i & 1 == 1).unwrap_or(u32::MAX)),
        // How far up the highest bit is to go that is unlike the sign.
        46 => {
            one!("bfind.shiftamt.s32", |p| (0..32).find(|i| (p << i ^ p & 1 << 31) >> 31 == 1).map_or(u32::MAX, |i| i))
        }
        47 => {
            let (at, length) = (random.below(40) as u32, random.below(40) as u32);
            let step = move |s: &mut State| {
                let inside = |i: u32| i >= at && i < at + length;
                let bit = |i: u32| if inside(i) { s.r[a] >> (i - at) & 1 } else { s.r[b] >> i & 1 };
                s.r[d] = (0..32).fold(0, |out, i| out | bit(i) << i);
            };
            (format!("bfi.b32 %r{d}, %r{a}, %r{b}, {at}, {length};"), Box::new(step))
        }
        // A sum and a difference of 128 bits through the carry.
        _ => {
            let (low, high) = (x, (x + 1) % WIDE);
            let take = random.below(2) == 0;
            let (first, second) = if take { ("sub.cc.u64", "subc.u64") } else { ("add.cc.u64", "addc.u64") };
            let (u, v) = ((x + 2) % WIDE, (x + 3) % WIDE);
            (
                format!("{first} %rd{low}, %rd{low}, %rd{u}; {second} %rd{high}, %rd{high}, %rd{v};"),
                Box::new(move |s| {
                    let join = |low: u64, high: u64| u128::from(high) << 64 | u128::from(low);
                    let (p, q) = (join(s.d[low], s.d[high]), join(s.d[u], s.d[v]));
                    let out = if take { p.wrapping_sub(q) } else { p.wrapping_add(q) };
                    (s.d[low], s.d[high]) = (out as u64, (out >> 64) as u64);
                }),
            )
        }
    }
}

/// A value between two singles, moved to the one toward zero, down or up.
fn directed(exact: f64, direction: &str) -> f32 {
    let near = exact as f32;
    let past = f64::from(near);
    match direction {
        "rz" if past.abs() > exact.abs() => f32::from_bits(near.to_bits() - 1),
        "rm" if past > exact => near.next_down(),
        "rp" if past < exact => near.next_up(),
        _ => near,
    }
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

#[expect(clippy::float_cmp, reason = "the instructions compare exactly")]
fn floating(random: &mut Random) -> Step {
    let (d, a, b, c) = (random.below(FLOATS), random.below(FLOATS), random.below(FLOATS), random.below(FLOATS));
    let (r, p) = (random.below(WORDS), random.below(PREDICATES));
    let two = |name: &str, f: fn(f32, f32) -> f32| -> Step {
        (format!("{name} %f{d}, %f{a}, %f{b};"), Box::new(move |s| s.f[d] = f(s.f[a], s.f[b])))
    };
    match random.below(21) {
        0 => two("add.rn.f32", |x, y| x + y),
        1 => two("sub.f32", |x, y| x - y),
        2 => two("mul.f32", |x, y| x * y),
        3 => two("div.rn.f32", |x, y| x / y),
        4 => two("add.ftz.f32", |x, y| flush(flush(x) + flush(y))),
        5 => two("mul.ftz.f32", |x, y| flush(flush(x) * flush(y))),
        6 => two("mul.rz.f32", |x, y| directed(f64::from(x) * f64::from(y), "rz")),
        7 => two("mul.rm.f32", |x, y| directed(f64::from(x) * f64::from(y), "rm")),
        8 => two("mul.rp.f32", |x, y| directed(f64::from(x) * f64::from(y), "rp")),
        9 => two("min.f32", |x, y| match (x.is_nan(), y.is_nan()) {
            (true, _) => y,
            (_, true) => x,
            _ if x < y || x == y && x.is_sign_negative() => x,
            _ => y,
        }),
        10 => two("max.f32", |x, y| match (x.is_nan(), y.is_nan()) {
            (true, _) => y,
            (_, true) => x,
            _ if x > y || x == y && x.is_sign_positive() => x,
            _ => y,
        }),
        11 => two("max.NaN.f32", |x, y| match (x.is_nan() || y.is_nan(), x > y || x == y && x.is_sign_positive()) {
            (true, _) => f32::NAN,
            (_, true) => x,
            _ => y,
        }),
        12 => (
            format!("fma.rn.f32 %f{d}, %f{a}, %f{b}, %f{c};"),
            Box::new(move |s| s.f[d] = s.f[a].mul_add(s.f[b], s.f[c])),
        ),
        13 => (format!("neg.f32 %f{d}, %f{a};"), Box::new(move |s| s.f[d] = -s.f[a])),
        14 => (format!("abs.f32 %f{d}, %f{a};"), Box::new(move |s| s.f[d] = s.f[a].abs())),
        15 => (format!("sqrt.rn.f32 %f{d}, %f{a};"), Box::new(move |s| s.f[d] = s.f[a].sqrt())),
        16 => (format!("cvt.rn.f32.s32 %f{d}, %r{r};"), Box::new(move |s| s.f[d] = s.r[r] as i32 as f32)),
        17 => {
            // A cast of Rust clamps, and takes NaN to zero, as the instruction does.
            let (name, f): (&str, fn(f32) -> f32) = [
                ("rzi", f32::trunc as fn(f32) -> f32),
                ("rni", f32::round_ties_even),
                ("rmi", f32::floor),
                ("rpi", f32::ceil),
            ][random.below(4)];
            (format!("cvt.{name}.s32.f32 %r{r}, %f{a};"), Box::new(move |s| s.r[r] = f(s.f[a]) as i32 as u32))
        }
        18 => {
            let (name, f): (&str, fn(f32, f32) -> bool) = [
                ("eq", (|x, y| x == y) as fn(f32, f32) -> bool),
                ("ne", |x, y| x != y && !x.is_nan() && !y.is_nan()),
                ("lt", |x, y| x < y),
                ("ge", |x, y| x >= y),
                ("equ", |x, y| x == y || x.is_nan() || y.is_nan()),
                ("neu", |x, y| x != y),
                ("ltu", |x, y| !matches!(x.partial_cmp(&y), Some(order) if order.is_ge())),
                ("num", |x, y| !x.is_nan() && !y.is_nan()),
                ("nan", |x, y| x.is_nan() || y.is_nan()),
            ][random.below(9)];
            (format!("setp.{name}.f32 %p{p}, %f{a}, %f{b};"), Box::new(move |s| s.p[p] = f(s.f[a], s.f[b])))
        }
        19 => (
            format!("cvt.rn.f16.f32 %h0, %f{a}; cvt.f32.f16 %f{d}, %h0;"),
            Box::new(move |s| s.f[d] = half::f16::from_f32(s.f[a]).to_f32()),
        ),
        _ => (
            format!("cvt.rn.bf16.f32 %h1, %f{a}; cvt.f32.bf16 %f{d}, %h1;"),
            Box::new(move |s| s.f[d] = half::bf16::from_f32(s.f[a]).to_f32()),
        ),
    }
}

/// Bytes of a thread's registers in memory.
const RECORD: usize = 4 * WORDS + 8 * WIDE + 4 * FLOATS + 4 * PREDICATES;

fn to_bytes(state: &State) -> Vec<u8> {
    let words = state.r.iter().flat_map(|value| value.to_le_bytes());
    let wide = state.d.iter().flat_map(|value| value.to_le_bytes());
    let floats = state.f.iter().flat_map(|value| value.to_bits().to_le_bytes());
    let predicates = state.p.iter().flat_map(|&value| u32::from(value).to_le_bytes());
    words.chain(wide).chain(floats).chain(predicates).collect()
}

/// A kernel that loads a thread's registers, runs a body and stores them again.
fn kernel(body: &str) -> String {
    let (mut load, mut store) = (String::new(), String::new());
    let mut at = 0;
    for (kind, name, count, bytes) in [("b32", "r", WORDS, 4), ("b64", "rd", WIDE, 8), ("f32", "f", FLOATS, 4)] {
        for i in 0..count {
            let _ = writeln!(load, "ld.global.{kind} %{name}{i}, [%base+{at}];");
            let _ = writeln!(store, "st.global.{kind} [%base+{at}], %{name}{i};");
            at += bytes;
        }
    }
    for i in 0..PREDICATES {
        let _ = writeln!(load, "ld.global.u32 %t, [%base+{at}]; setp.ne.u32 %p{i}, %t, 0;");
        let _ = writeln!(store, "selp.u32 %t, 1, 0, %p{i}; st.global.u32 [%base+{at}], %t;");
        at += 4;
    }
    format!(
        ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a)\n{{\n\
         .reg .b32 %r<{WORDS}>, %t, %fuel; .reg .b64 %rd<{WIDE}>, %base, %own; .reg .f32 %f<{FLOATS}>;\n\
         .reg .pred %p<{PREDICATES}>, %q; .reg .b16 %h<2>;\n\
         ld.param.u64 %base, [a]; mov.u32 %t, %tid.x; mul.wide.u32 %own, %t, {RECORD}; add.s64 %base, %base, %own;\n\
         {load}{body}{store}ret;\n}}\n"
    )
}

/// Runs a body on the emulator and compares all registers with what the interpreter left.
fn check(seed: u64, body: &str, before: &[State], after: &[State]) {
    let ptx = kernel(body);
    let device = Device::new(Chip::Sm80, 1 << 20);
    let module = Module::load(&ptx, &device).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{ptx}"));
    let address = device.memory.alloc((RECORD * before.len()) as u64).expect("room");
    let contents: Vec<u8> = before.iter().flat_map(to_bytes).collect();
    device.memory.write(address, &contents).expect("it is there");
    let (params, options) = (address.to_le_bytes(), Options::default());
    let block = [before.len() as u32, 1, 1];
    let launch = Launch { grid: [1; 3], block, shared_bytes: 0, params: &params, options };
    module.launch(&device, "k", &launch).unwrap_or_else(|fault| panic!("seed {seed}: {fault}\n{ptx}"));
    let mut found = vec![0; contents.len()];
    device.memory.read(address, &mut found).expect("it is there");
    for (thread, (found, after)) in found.chunks(RECORD).zip(after).enumerate() {
        let expected = to_bytes(after);
        for at in (0..RECORD).step_by(4) {
            let word = |bytes: &[u8]| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            let (found, expected) = (word(found), word(&expected));
            let is_float = (4 * WORDS + 8 * WIDE..4 * WORDS + 8 * WIDE + 4 * FLOATS).contains(&at);
            // The bits of a NaN are not defined by the interpreter.
            let alike = is_float && f32::from_bits(found).is_nan() && f32::from_bits(expected).is_nan();
            assert!(
                found == expected || alike,
                "seed {seed}, thread {thread}, byte {at} of the registers: {found:#x} for {expected:#x}\n{ptx}"
            );
        }
    }
}

fn states(random: &mut Random) -> Vec<State> {
    let mut one = |_| State {
        r: std::array::from_fn(|_| random.word()),
        d: std::array::from_fn(|_| u64::from(random.word()) << 32 | u64::from(random.word())),
        f: std::array::from_fn(|_| random.float()),
        p: std::array::from_fn(|_| random.below(2) == 0),
    };
    (0..THREADS).map(&mut one).collect()
}

/// A step that some threads pass over, once in a while.
fn guarded(random: &mut Random, (text, run): Step) -> Step {
    if random.below(4) != 0 {
        return (text, run);
    }
    let (p, negated) = (random.below(PREDICATES), random.below(2) == 0);
    let guard = format!("@{}%p{p} ", if negated { "!" } else { "" });
    // Two instructions on one line are both guarded, and the first must not change the predicate of the second.
    let text = text.split_inclusive("; ").fold(String::new(), |out, part| out + &guard + part);
    (
        text,
        Box::new(move |s| {
            if s.p[p] != negated {
                run(s);
            }
        }),
    )
}

fn straight_line(seed: u64, make: fn(&mut Random) -> Step) {
    let mut random = Random(seed);
    let before = states(&mut random);
    let steps: Vec<Step> = (0..40)
        .map(|_| {
            let step = make(&mut random);
            guarded(&mut random, step)
        })
        .collect();
    let body: String = steps.iter().flat_map(|(text, _)| [text.as_str(), "\n"]).collect();
    let mut after = before.clone();
    for state in &mut after {
        for (_, run) in &steps {
            run(state);
        }
    }
    check(seed, &body, &before, &after);
}

#[test]
fn straight_lines_of_integers() {
    (0..300).for_each(|seed| straight_line(seed, integer));
}

#[test]
fn straight_lines_of_floats() {
    (0..300).for_each(|seed| straight_line(seed, floating));
}

/// How a block of a random program ends.
enum End {
    /// To one of two blocks by a bit of a register.
    Branch {
        r: usize,
        bit: u32,
        taken: usize,
        otherwise: usize,
    },
    /// To one of four by two bits.
    Table {
        r: usize,
        targets: [usize; 4],
    },
    Leave,
}

/// Random blocks with jumps anywhere, forward and back; a thread's fuel ends it. All threads must be together behind them.
fn control_flow(seed: u64) {
    const FUEL: u32 = 40;
    let mut random = Random(seed);
    let before = states(&mut random);
    let count = 2 + random.below(10);
    let mut blocks = Vec::new();
    let mut body = format!("mov.u32 %fuel, {FUEL};\n");
    for block in 0..count {
        let steps: Vec<Step> = (0..=random.below(4)).map(|_| integer(&mut random)).collect();
        let _ = writeln!(body, "B{block}: sub.u32 %fuel, %fuel, 1; setp.eq.u32 %q, %fuel, 0; @%q bra END;");
        for (text, _) in &steps {
            let _ = writeln!(body, "{text}");
        }
        let (r, bit) = (random.below(WORDS), random.below(32) as u32);
        let end = match random.below(6) {
            0 => End::Leave,
            1 => End::Table { r, targets: std::array::from_fn(|_| random.below(count)) },
            _ => End::Branch { r, bit, taken: random.below(count), otherwise: random.below(count) },
        };
        let _ = match &end {
            End::Leave => writeln!(body, "bra.uni END;"),
            End::Table { r, targets: [a, b, c, d] } => writeln!(
                body,
                "and.b32 %t, %r{r}, 3; T{block}: .branchtargets B{a}, B{b}, B{c}, B{d}; brx.idx %t, T{block};"
            ),
            End::Branch { r, bit, taken, otherwise } => writeln!(
                body,
                "and.b32 %t, %r{r}, {}; setp.ne.u32 %q, %t, 0; @%q bra B{taken}; bra B{otherwise};",
                1u32 << bit
            ),
        };
        blocks.push((steps, end));
    }
    // With a lane missing, the shuffle is a fault.
    let members = (1u64 << (THREADS - 32)) - 1;
    let _ = writeln!(
        body,
        "END: mov.u32 %t, %tid.x; setp.lt.u32 %q, %t, 32; selp.b32 %t, -1, {members}, %q;\n\
         shfl.sync.idx.b32 %fuel, %fuel, 0, 31, %t; bar.sync 0;"
    );
    let mut after = before.clone();
    for state in &mut after {
        let mut at = Some(0);
        for _ in 1..FUEL {
            let Some(block) = at else { break };
            let (steps, end) = &blocks[block];
            for (_, run) in steps {
                run(state);
            }
            at = match end {
                End::Leave => None,
                End::Table { r, targets } => Some(targets[(state.r[*r] & 3) as usize]),
                End::Branch { r, bit, taken, otherwise } => {
                    Some(if state.r[*r] >> bit & 1 != 0 { *taken } else { *otherwise })
                }
            };
        }
    }
    check(seed, &body, &before, &after);
}

#[test]
fn divergent_control_flow_comes_together_again() {
    (1000..1300).for_each(control_flow);
}
