//! AMX: tile registers and their products, on Intel's server processors since Sapphire Rapids.
//!
//! A program must ask the system once for the registers, whose contents take 8 KB of each thread that uses them
//! ([`is_available`]), and each thread must set their shapes before it uses them ([`configure`]). Source: Intel, "Architecture
//! Instruction Set Extensions Programming Reference", chapter 3; Linux, Documentation/arch/x86/xstate.rst.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::cell::Cell;
use std::sync::OnceLock;

/// Bytes of a row of a tile.
pub const ROW: usize = 64;

/// Rows and tiles that the registers have.
const ROWS: u8 = 16;
const TILES: usize = 8;

/// Returns true if the processor has AMX-TILE, AMX-BF16 and AMX-INT8, and AVX512-BF16, which rounds their operands, and the
/// system lets this process use them.
pub fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && is_allowed())
}

fn has_instructions() -> bool {
    const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const AVX512_BF16: u32 = 1 << 5;
    // Leaf 7 exists on every processor whose highest leaf is not below it.
    __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & BF16_TILE_INT8 == BF16_TILE_INT8
        && __cpuid_count(7, 1).eax & AVX512_BF16 != 0
}

/// Asks the system for the registers.
#[cfg(target_os = "linux")]
fn is_allowed() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: this call only sets a permission of the process; a kernel that does not know it returns an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_allowed() -> bool {
    false
}

/// Number of rows of each of the eight tiles, all of [`ROW`] bytes: at most 16, or 0 for a tile that is not used.
pub type Shapes = [u8; TILES];

/// Memory layout of a configuration, palette 1.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Sets the shapes of this thread's tiles, unless they are set already.
///
/// # Panics
/// If AMX is not available, or a tile has more than 16 rows.
#[inline]
pub fn configure(shapes: Shapes) {
    thread_local! {
        static SET: Cell<Shapes> = const { Cell::new([0; TILES]) };
    }
    if SET.get() != shapes {
        set(shapes);
        SET.set(shapes);
    }
}

#[cold]
fn set(shapes: Shapes) {
    assert!(is_available(), "AMX is not available");
    assert!(shapes.iter().all(|&rows| rows <= ROWS), "rows of tiles: {shapes:?}");
    let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    for (tile, &rows) in shapes.iter().enumerate().filter(|&(_, &rows)| rows > 0) {
        config.row_bytes[tile] = ROW as u16;
        config.rows[tile] = rows;
    }
    // SAFETY: AMX is available; the configuration is 64 bytes of palette 1 with legal shapes. Tiles hold no values between
    // the functions that use them.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
}
