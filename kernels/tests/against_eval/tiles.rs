//! The matrix instructions of x86 (AMX) for CPUs that lack them: where one stops generated code as illegal, it is decoded
//! and done here, and the code goes on behind it. Written from Intel's manual (SDM volume 2: TILELOADD, TILESTORED,
//! TILEZERO, TDPB*, LDTILECFG, TILERELEASE; volume 1: tile configuration); what it calls a fault ends the process.
#![expect(unsafe_code, reason = "a signal handler that reads code, memory and registers of what it interrupts")]

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Once;

/// Bytes of a row, and rows, at most.
const ROW_BYTES: usize = 64;
const ROWS: usize = 16;

/// The registers of a thread.
struct Tiles {
    configured: bool,
    rows: [usize; 8],
    row_bytes: [usize; 8],
    data: [[[u8; ROW_BYTES]; ROWS]; 8],
    /// Products so far.
    products: usize,
}

thread_local! {
    // Constant and without a destructor, so that a signal handler may use it.
    static TILES: RefCell<Tiles> = const {
        RefCell::new(Tiles {
            configured: false,
            rows: [0; 8],
            row_bytes: [0; 8],
            data: [[[0; ROW_BYTES]; ROWS]; 8],
            products: 0,
        })
    };
}

/// Has matrix instructions done here from now on.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: an all-zero action is a valid one; the handler has the signature that SA_SIGINFO asks for.
        let status = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &raw const action, ptr::null_mut())
        };
        assert_eq!(status, 0, "the handler of illegal instructions");
    });
}

/// How many products this thread has done, and whether its registers are still configured.
pub fn products() -> (usize, bool) {
    TILES.with_borrow(|tiles| (tiles.products, tiles.configured))
}

extern "C" fn on_illegal(signal: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands the interrupted thread's context to the handler, alone to it.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the bytes of an instruction that was fetched; `Instruction` asks for no more than it has.
    let byte = |index: usize| unsafe { at.add(index).read() };
    match Instruction::decode(byte, registers) {
        Some(instruction) => {
            registers[libc::REG_RIP as usize] += instruction.length as i64;
            TILES.with_borrow_mut(|tiles| tiles.execute(&instruction));
        }
        None => {
            // Not ours: the default action, when the instruction is tried again.
            // SAFETY: SIG_DFL is always a valid action.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// Ends the process as the hardware's fault would.
fn fault(what: &str) -> ! {
    eprintln!("fault of a matrix instruction: {what}");
    std::process::abort()
}

fn check(holds: bool, what: &str) {
    if !holds {
        fault(what);
    }
}

/// What an instruction does, by opcode and operands.
enum Action {
    Configure {
        from: usize,
    },
    Release,
    Zero {
        tile: usize,
    },
    Load {
        tile: usize,
        from: usize,
        stride: usize,
    },
    Store {
        tile: usize,
        to: usize,
        stride: usize,
    },
    /// `sums += a · b`, with bytes of `a` and of `b` signed or not.
    Product {
        sums: usize,
        a: (usize, bool),
        b: (usize, bool),
    },
}

struct Instruction {
    action: Action,
    length: usize,
}

impl Instruction {
    /// Decodes a three-byte VEX prefix of map 0F38, an opcode and its operands.
    fn decode(byte: impl Fn(usize) -> u8, registers: &[i64]) -> Option<Instruction> {
        if byte(0) != 0xc4 || byte(1) & 0x1f != 2 {
            return None;
        }
        let (extensions, last, opcode) = (!byte(1), byte(2), byte(3));
        let (third, prefix) = (usize::from(!last >> 3 & 15), last & 3);
        let mode = byte(4);
        let (register, low) = (usize::from(mode >> 3 & 7), usize::from(mode & 7));
        let is_memory = mode >> 6 != 3;
        // What a memory operand says: its address, its index register's value, and its length with the mode byte.
        let memory = || Memory::decode(&byte, registers, extensions);
        let (action, operand_length) = match (opcode, prefix, is_memory) {
            (0x49, 0, true) => {
                let memory = memory();
                (Action::Configure { from: memory.base.wrapping_add(memory.index) }, memory.length)
            }
            (0x49, 0, false) => (Action::Release, 1),
            (0x49, 3, false) => (Action::Zero { tile: register }, 1),
            (0x4b, 3, true) => {
                let memory = memory();
                (Action::Load { tile: register, from: memory.base, stride: memory.index }, memory.length)
            }
            (0x4b, 2, true) => {
                let memory = memory();
                (Action::Store { tile: register, to: memory.base, stride: memory.index }, memory.length)
            }
            (0x5e, prefix, false) => {
                // None, 66, F3, F2: unsigned by unsigned, by signed, signed by unsigned, signed by signed.
                let a_signed = prefix >= 2;
                let b_signed = prefix == 1 || prefix == 3;
                (Action::Product { sums: register, a: (low, a_signed), b: (third, b_signed) }, 1)
            }
            _ => return None,
        };
        Some(Instruction { action, length: 4 + operand_length })
    }
}

/// A memory operand: base with displacement, and scaled index.
struct Memory {
    base: usize,
    index: usize,
    length: usize,
}

impl Memory {
    fn decode(byte: &impl Fn(usize) -> u8, registers: &[i64], extensions: u8) -> Memory {
        /// Registers in the order of their numbers.
        const ORDER: [c_int; 16] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        let value = |number: u8, extension: u8| {
            let high = if extensions & extension == 0 { 0 } else { 8 };
            registers[ORDER[usize::from(number | high)] as usize] as usize
        };
        let (mode, low) = (byte(4) >> 6, byte(4) & 7);
        let has_index_byte = low == 4;
        let index_byte = byte(5);
        let displacement_at = if has_index_byte { 6 } else { 5 };
        let base_number = if has_index_byte { index_byte & 7 } else { low };
        let bytes = match mode {
            1 => 1,
            2 => 4,
            _ if base_number == 5 => 4,
            _ => 0,
        };
        let displacement = match bytes {
            0 => 0,
            1 => byte(displacement_at) as i8 as isize,
            _ => i32::from_le_bytes(std::array::from_fn(|i| byte(displacement_at + i))) as isize,
        };
        let length = displacement_at + bytes - 4;
        let base = match (mode, base_number, has_index_byte) {
            // Relative to the next instruction, or absolute.
            (0, 5, false) => registers[libc::REG_RIP as usize] as usize + 4 + length,
            (0, 5, true) => 0,
            _ => value(base_number, 0x20),
        };
        let number = index_byte >> 3 & 7;
        let has_index = has_index_byte && (number != 4 || extensions & 0x40 != 0);
        let index = if has_index { value(number, 0x40) << (index_byte >> 6) } else { 0 };
        Memory { base: base.wrapping_add_signed(displacement), index, length }
    }
}

impl Tiles {
    fn execute(&mut self, instruction: &Instruction) {
        if !matches!(instruction.action, Action::Configure { .. } | Action::Release) {
            check(self.configured, "the registers are not configured");
        }
        match instruction.action {
            Action::Configure { from } => self.configure(from),
            Action::Release => self.configured = false,
            Action::Zero { tile } => self.data[self.used(tile)] = [[0; ROW_BYTES]; ROWS],
            Action::Load { tile, from, stride } => {
                let tile = self.used(tile);
                self.data[tile] = [[0; ROW_BYTES]; ROWS];
                for row in 0..self.rows[tile] {
                    let address = from.wrapping_add(stride.wrapping_mul(row)) as *const u8;
                    let out = self.data[tile][row].as_mut_ptr();
                    // SAFETY: as many bytes as the instruction reads; an address that is not mapped ends the process, as
                    // it would there.
                    unsafe { ptr::copy_nonoverlapping(address, out, self.row_bytes[tile]) };
                }
            }
            Action::Store { tile, to, stride } => {
                let tile = self.used(tile);
                for row in 0..self.rows[tile] {
                    let address = to.wrapping_add(stride.wrapping_mul(row)) as *mut u8;
                    let data = self.data[tile][row].as_ptr();
                    // SAFETY: as for a load.
                    unsafe { ptr::copy_nonoverlapping(data, address, self.row_bytes[tile]) };
                }
            }
            Action::Product { sums, a, b } => self.multiply(sums, a, b),
        }
    }

    fn configure(&mut self, from: usize) {
        let mut bytes = [0u8; 64];
        // SAFETY: the instruction reads these 64 bytes.
        unsafe { ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), 64) };
        check(bytes[0] == 1 && bytes[1] == 0, "expected palette 1, from the first row on");
        let reserved = [&bytes[2..16], &bytes[32..48], &bytes[56..]].concat();
        check(reserved.iter().all(|&byte| byte == 0), "reserved bytes of a configuration are not zero");
        for tile in 0..8 {
            let row_bytes = usize::from(u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]));
            let rows = usize::from(bytes[48 + tile]);
            check(row_bytes <= ROW_BYTES && rows <= ROWS, "a register of more than 16 rows of 64 bytes");
            check((row_bytes == 0) == (rows == 0), "a register with rows but no columns, or the reverse");
            (self.row_bytes[tile], self.rows[tile]) = (row_bytes, rows);
        }
        self.configured = true;
        self.data = [[[0; ROW_BYTES]; ROWS]; 8];
    }

    /// The index of a register that the configuration has.
    fn used(&self, tile: usize) -> usize {
        check(self.rows[tile] > 0, "a register that is not configured");
        tile
    }

    fn multiply(&mut self, sums: usize, (a, a_signed): (usize, bool), (b, b_signed): (usize, bool)) {
        check(sums != a && sums != b && a != b, "registers of a product are not three");
        let (rows, quads) = (self.rows[self.used(sums)], self.row_bytes[self.used(a)] / 4);
        let lanes = self.row_bytes[sums] / 4;
        check(self.rows[a] == rows, "rows of the sums and of the first factor differ");
        check(self.row_bytes[a].is_multiple_of(4) && self.rows[self.used(b)] == quads, "the depths differ");
        check(self.row_bytes[b] == 4 * lanes && self.row_bytes[sums].is_multiple_of(4), "the columns differ");
        let number = |byte: u8, signed: bool| if signed { i32::from(byte as i8) } else { i32::from(byte) };
        for m in 0..rows {
            for n in 0..lanes {
                let place = 4 * n..4 * n + 4;
                let sum: [u8; 4] = std::array::from_fn(|i| self.data[sums][m][4 * n + i]);
                let mut sum = i32::from_le_bytes(sum);
                for k in 0..quads {
                    for i in 0..4 {
                        let product =
                            number(self.data[a][m][4 * k + i], a_signed) * number(self.data[b][k][4 * n + i], b_signed);
                        sum = sum.wrapping_add(product);
                    }
                }
                self.data[sums][m][place].copy_from_slice(&sum.to_le_bytes());
            }
        }
        self.products += 1;
    }
}
