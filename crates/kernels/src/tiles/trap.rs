//! For tests on x86-64 Linux without AMX: the tile *instructions* themselves, each carried out by a handler of the
//! illegal-instruction signal that it raises. What is tested is then the machine code that a processor with AMX runs:
//! its operands, the order of its loads and the ends of its loops.
//!
//! Encodings and effects: Intel's "Software Developer's Manual", volume 2, LDTILECFG to TILEZERO.

use std::cell::UnsafeCell;
use std::sync::OnceLock;

use super::tile::{NativeTiles, TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS};
use crate::isa::Isa;

/// Registers of the tiles of a thread, and whether they are configured.
struct Tiles {
    configured: bool,
    rows: [[u8; TILE_BYTES]; 8],
}

thread_local! {
    static TILES: UnsafeCell<Tiles> =
        const { UnsafeCell::new(Tiles { configured: false, rows: [[0; TILE_BYTES]; 8] }) };
}

/// From here on this process survives tile instructions, for as long as it lives.
pub(crate) fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // SAFETY: the action is fully set (zero is a valid empty mask and no restorer); the handler has the signature
        // that SA_SIGINFO asks for, and touches this thread's registers and tiles alone.
        unsafe {
            let mut action = std::mem::zeroed::<libc::sigaction>();
            action.sa_sigaction = on_illegal_instruction as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
}

/// The tiles of this machine, or their instructions where they trap.
pub(crate) fn tiles() -> NativeTiles {
    if Isa::best().amx().is_none() {
        install();
    }
    // SAFETY: AMX is proven, or else its instructions are carried out where they trap.
    unsafe { NativeTiles::unproven() }
}

extern "C" fn on_illegal_instruction(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the third argument is the context of the interrupted thread, which is this one.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let done = TILES.with(|tiles| {
        // SAFETY: nothing else refers to the tiles: the handler is the only user, and no tile instruction is in it.
        // The interrupted code promises of its memory what it would promise a processor with tiles.
        unsafe { carry_out(registers, &mut *tiles.get()) }
    });
    if !done {
        // Not one of ours: the instruction is met again, and ends the process.
        // SAFETY: a plain change of this signal's action.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}

/// Carries out the instruction at RIP and steps over it; `false` if it is not a tile instruction, or used wrongly.
///
/// # Safety
/// The registers are those of a thread at an instruction, whose memory operand is valid for it.
unsafe fn carry_out(registers: &mut [libc::greg_t; 23], tiles: &mut Tiles) -> bool {
    // SAFETY: the processor has fetched the instruction from here. Not all of these bytes need be part of it, but it is
    // followed by the rest of its function.
    let code = unsafe { *(registers[libc::REG_RIP as usize] as *const [u8; 10]) };
    // VEX with three bytes, map 0F38, W 0, 128 bits.
    if code[0] != 0xC4 || code[1] & 0x1F != 2 || code[2] & 0x84 != 0 {
        return false;
    }
    let (opcode, prefix, operand) = (code[3], code[2] & 3, Operand::new(&code));
    let (first, third) = (usize::from(code[4] >> 3 & 7), usize::from(!code[2] >> 3 & 15));
    let second = usize::from(code[4] & 7);
    let of_memory = code[4] >> 6 != 3;
    let length = if of_memory { operand.length } else { 5 };
    const NONE: u8 = 0;
    const F3: u8 = 2;
    const F2: u8 = 3;
    // SAFETY: addresses are those of the instruction, for which the caller vouches; rows lie `stride` bytes apart.
    unsafe {
        match (opcode, prefix, of_memory) {
            (0x49, NONE, true) => {
                let config = (operand.address(registers) as *const [u8; 64]).read_unaligned();
                let expected: [u8; 64] = crate::math::array(|at| match at {
                    0 => 1,
                    16..32 if at % 2 == 0 => TILE_ROW_BYTES as u8,
                    48..56 => TILE_ROWS as u8,
                    _ => 0,
                });
                if config != expected {
                    return false;
                }
                *tiles = Tiles { configured: true, rows: [[0; TILE_BYTES]; 8] };
            }
            (0x49, NONE, false) => tiles.configured = false,
            _ if !tiles.configured => return false,
            (0x49, F2, false) => tiles.rows[first] = [0; TILE_BYTES],
            (0x4B, F2, true) => {
                let (start, stride) = operand.rows(registers);
                for (row, to) in tiles.rows[first].chunks_exact_mut(TILE_ROW_BYTES).enumerate() {
                    let from = start.wrapping_add(stride.wrapping_mul(row)) as *const u8;
                    to.as_mut_ptr().copy_from_nonoverlapping(from, TILE_ROW_BYTES);
                }
            }
            (0x4B, F3, true) => {
                let (start, stride) = operand.rows(registers);
                for (row, from) in tiles.rows[first].chunks_exact(TILE_ROW_BYTES).enumerate() {
                    let to = start.wrapping_add(stride.wrapping_mul(row)) as *mut u8;
                    to.copy_from_nonoverlapping(from.as_ptr(), TILE_ROW_BYTES);
                }
            }
            (0x5C, F3, false) if third < 8 && first != second && first != third && second != third => {
                let (a, b) = (tiles.rows[second], tiles.rows[third]);
                multiply(&mut tiles.rows[first], &a, &b);
            }
            _ => return false,
        }
    }
    registers[libc::REG_RIP as usize] += length as libc::greg_t;
    true
}

/// C += A·B of one tile each, B in pairs: the sums of even and of odd depth apart, added at the end, as TDPBF16PS does.
fn multiply(c: &mut [u8; TILE_BYTES], a: &[u8; TILE_BYTES], b: &[u8; TILE_BYTES]) {
    let bf16 = |tile: &[u8; TILE_BYTES], at: usize| {
        f32::from_bits(u32::from(u16::from_le_bytes([tile[at], tile[at + 1]])) << 16)
    };
    for row in 0..TILE_ROWS {
        let (mut even, mut odd) = ([0.0f32; 16], [0.0f32; 16]);
        for pair in 0..TILE_ROWS {
            let at = row * TILE_ROW_BYTES + 4 * pair;
            let (a_even, a_odd) = (bf16(a, at), bf16(a, at + 2));
            for col in 0..16 {
                let at = pair * TILE_ROW_BYTES + 4 * col;
                even[col] += a_even * bf16(b, at);
                odd[col] += a_odd * bf16(b, at + 2);
            }
        }
        for col in 0..16 {
            let at = row * TILE_ROW_BYTES + 4 * col;
            let bytes = &mut c[at..at + 4];
            let sum = f32::from_le_bytes(bytes.try_into().unwrap()) + (even[col] + odd[col]);
            bytes.copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// A memory operand: base + index·2^scale + displacement.
struct Operand {
    base: usize,
    index: Option<usize>,
    scale: u8,
    displacement: i64,
    /// Bytes of the whole instruction.
    length: usize,
}

impl Operand {
    /// Decodes ModRM, SIB and displacement of an instruction with three bytes of VEX. Without a base register (which
    /// the assembler is never asked for) it means nothing.
    fn new(code: &[u8; 10]) -> Self {
        let (mode, low) = (code[4] >> 6, code[4] & 7);
        let extend = |bit: u8| usize::from(!code[1] >> bit & 1) << 3;
        let (mut at, mut base, mut index, mut scale) = (5, usize::from(low), None, 0);
        if low == 4 {
            let sib = code[5];
            (at, base, scale) = (6, usize::from(sib & 7), sib >> 6);
            index = Some(usize::from(sib >> 3 & 7) | extend(6)).filter(|&index| index != 4);
        }
        let (displacement, bytes) = match mode {
            1 => (i64::from(code[at] as i8), 1),
            2 => (i64::from(i32::from_le_bytes(code[at..at + 4].try_into().unwrap())), 4),
            _ => (0, 0),
        };
        Operand { base: base | extend(5), index, scale, displacement, length: at + bytes }
    }

    /// The value of general register `number`, in the order of the encoding.
    fn register(registers: &[libc::greg_t; 23], number: usize) -> usize {
        use libc::{
            REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RAX, REG_RBP, REG_RBX,
            REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP,
        };
        let order = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10,
            REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        registers[order[number] as usize] as usize
    }

    /// Address of a plain operand.
    fn address(&self, registers: &[libc::greg_t; 23]) -> usize {
        let index = self.index.map_or(0, |index| Self::register(registers, index) << self.scale);
        self.start(registers).wrapping_add(index)
    }

    /// For loads and stores of tiles, whose index is no offset: address of the first row, bytes to the next.
    fn rows(&self, registers: &[libc::greg_t; 23]) -> (usize, usize) {
        let stride = self.index.map_or(0, |index| Self::register(registers, index) << self.scale);
        (self.start(registers), stride)
    }

    fn start(&self, registers: &[libc::greg_t; 23]) -> usize {
        Self::register(registers, self.base).wrapping_add_signed(self.displacement as isize)
    }
}
