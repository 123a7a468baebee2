//! Matrix registers of x86 CPUs (AMX): products of signed activations with unsigned weights, exact like
//! [`dot`](super::dot), for 16 rows and 16 lanes at once.
//!
//! Three of the eight registers are used. [`SUMS`] holds a 32-bit sum for each row of activations and each lane,
//! [`ACTIVATIONS`] some bytes of each row, [`WEIGHTS`] four bytes per lane in each of its rows: the form of a line of
//! packed weights. Their shapes are set once per call of a kernel, by [`Builder::begin_tiles`].

use inkwell::intrinsics::Intrinsic;
use inkwell::values::{BasicMetadataValueEnum, PointerValue};

use super::builder::{Builder, LANES, Val, ok};

/// Rows of activations that a register holds.
pub const TILE_ROWS: usize = 16;
/// Bytes of a row of sums or weights: four for each lane.
const ROW_BYTES: usize = 4 * LANES;
/// Bytes of the sums of a product.
pub const SUM_BYTES: usize = TILE_ROWS * ROW_BYTES;

/// Register of the sums.
const SUMS: u64 = 0;
/// Register of the activations.
const ACTIVATIONS: u64 = 1;
/// Register of the weights.
const WEIGHTS: u64 = 2;

/// What `ldtilecfg` loads, by the manual of the instruction set (Intel SDM, volume 1, "Tile configuration"): palette 1, no
/// row to resume at; from byte 16 on the bytes of a row of each register, 16 bits each; from byte 48 on the rows of each.
fn configuration(depth: usize) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let shapes = [(SUMS, TILE_ROWS, ROW_BYTES), (ACTIVATIONS, TILE_ROWS, depth), (WEIGHTS, depth / 4, ROW_BYTES)];
    for (register, rows, row_bytes) in shapes {
        bytes[16 + 2 * register as usize] = row_bytes as u8;
        bytes[48 + register as usize] = rows as u8;
    }
    bytes
}

impl<'c> Builder<'c> {
    /// Whether the target has matrix registers for bytes.
    pub fn has_tiles(&self) -> bool {
        self.target.has("amx_int8")
    }

    /// Sets the registers up for products over `depth` columns, a multiple of 4 up to 64.
    pub fn begin_tiles(&self, depth: usize) {
        let i8_type = self.context.i8_type();
        let bytes = configuration(depth).map(|byte| i8_type.const_int(u64::from(byte), false));
        let global = self.module.add_global(i8_type.array_type(64), None, "tiles");
        global.set_initializer(&i8_type.const_array(&bytes));
        global.set_constant(true);
        global.set_linkage(inkwell::module::Linkage::Private);
        global.set_alignment(64);
        self.tile_call("ldtilecfg", &[global.as_pointer_value().into()]);
    }

    /// Gives the registers back, without which a switch of threads would save them.
    pub fn end_tiles(&self) {
        self.tile_call("tilerelease", &[]);
    }

    /// Room for the 32-bit sums of `count` products.
    pub fn tile_frame(&self, count: usize) -> PointerValue<'c> {
        let frame = self.frame(count * TILE_ROWS * LANES);
        let slot = frame.as_instruction().expect("a frame is made by an instruction");
        slot.set_alignment(ROW_BYTES as u32).expect("a power of two");
        frame
    }

    /// Stores to `sums` the products of 16 rows of activations, `stride` bytes apart, with lines of weights: in row `m`
    /// and lane `n` the sum over the columns of `activations[m][k] · weights[k][n]`.
    pub fn tile_product(
        &self,
        sums: PointerValue<'c>,
        activations: PointerValue<'c>,
        stride: Val<'c>,
        weights: PointerValue<'c>,
    ) {
        let row = self.int(ROW_BYTES as i64);
        let register =
            |index: u64| -> BasicMetadataValueEnum<'c> { self.context.i8_type().const_int(index, false).into() };
        let stride_of = |stride: Val<'c>| -> BasicMetadataValueEnum<'c> { stride.0.into() };
        self.tile_call("tilezero", &[register(SUMS)]);
        self.tile_call("tileloadd64", &[register(ACTIVATIONS), activations.into(), stride_of(stride)]);
        self.tile_call("tileloadd64", &[register(WEIGHTS), weights.into(), stride_of(row)]);
        self.tile_call("tdpbsud", &[register(SUMS), register(ACTIVATIONS), register(WEIGHTS)]);
        self.tile_call("tilestored64", &[register(SUMS), sums.into(), stride_of(row)]);
    }

    fn tile_call(&self, name: &str, args: &[BasicMetadataValueEnum<'c>]) {
        let intrinsic = Intrinsic::find(&format!("llvm.x86.{name}")).expect("LLVM has the instructions of AMX");
        let function = intrinsic.get_declaration(&self.module, &[]).expect("they have no overloads");
        ok(self.llvm.build_call(function, args, ""));
    }
}

#[cfg(test)]
mod tests {
    use super::configuration;

    #[test]
    fn shapes_lie_where_the_manual_says() {
        let bytes = configuration(32);
        assert_eq!(bytes[..2], [1, 0]);
        assert_eq!(bytes[16..24], [64, 0, 32, 0, 64, 0, 0, 0]);
        assert_eq!(bytes[48..52], [16, 16, 8, 0]);
    }
}
