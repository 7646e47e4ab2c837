//! One body of tests for every unit that this machine has; the emulated one is always among them.

use half::bf16;

use super::sealed::Sealed;
use super::*;
use crate::isa::Isa;
use crate::tiles::tile::EmulatedTiles;
use crate::tiles::vector::PortableVectors;

/// Where the elements of a matrix lie: row-major or transposed, with `gap` unused elements between
/// rows and `offset` before the first.
#[derive(Clone, Copy, Debug)]
struct Layout {
    transposed: bool,
    gap: usize,
    offset: usize,
}

const DENSE: Layout = Layout { transposed: false, gap: 0, offset: 0 };
const LAYOUTS: [Layout; 4] = [
    DENSE,
    Layout { transposed: true, ..DENSE },
    Layout { transposed: false, gap: 32, offset: 32 },
    Layout { transposed: true, gap: 5, offset: 3 },
];

/// What lies where no element does: read, it would spoil every sum; in C, it must still be there after.
const UNUSED: f32 = f32::NAN;

/// A matrix in aligned memory.
struct Stored {
    memory: Vec<Line>,
    layout: Layout,
    rows: usize,
    cols: usize,
}

#[derive(Clone)]
#[repr(C, align(64))]
struct Line([bf16; 32]);

impl Stored {
    fn new(rows: usize, cols: usize, layout: Layout, value: impl Fn(usize, usize) -> bf16) -> Self {
        let (outer, inner) = if layout.transposed { (cols, rows) } else { (rows, cols) };
        let len = layout.offset + outer * (inner + layout.gap) + 1;
        let mut stored =
            Stored { memory: vec![Line([bf16::from_f32(UNUSED); 32]); len.div_ceil(32)], layout, rows, cols };
        let flat: Vec<(usize, bf16)> = (0..rows)
            .flat_map(|row| (0..cols).map(move |col| (row, col)))
            .map(|(row, col)| {
                let (o, i) = if layout.transposed { (col, row) } else { (row, col) };
                (layout.offset + o * (inner + layout.gap) + i, value(row, col))
            })
            .collect();
        for (at, value) in flat {
            stored.memory[at / 32].0[at % 32] = value;
        }
        stored
    }

    fn view(&self) -> MatrixRef<'_, bf16> {
        // SAFETY: a line is 32 elements and nothing else.
        let elements = unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().cast::<bf16>(), 32 * self.memory.len())
        };
        let elements = &elements[self.layout.offset..];
        if self.layout.transposed {
            MatrixRef::with_stride(elements, self.cols, self.rows, self.rows + self.layout.gap).transposed()
        } else {
            MatrixRef::with_stride(elements, self.rows, self.cols, self.cols + self.layout.gap)
        }
    }
}

/// Says which unit comes next, for whoever reads a failure.
fn begin(unit: &'static str) -> &'static str {
    eprintln!("on {unit}:");
    unit
}

/// Runs `body` with every pair of units that this machine has.
macro_rules! on_every_unit {
    (|$tiles:ident, $vectors:ident| $body:block) => {{
        let mut ran = Vec::new();
        {
            let ($tiles, $vectors) = (EmulatedTiles, PortableVectors);
            ran.push(begin("emulated tiles"));
            $body
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = crate::tiles::fma::Avx2Fma::new(Isa::best()) {
            let ($tiles, $vectors) = (tiles, tiles.vectors());
            ran.push(begin("AVX2 multiply-adds"));
            $body
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(vectors) = crate::tiles::vector_avx512::Avx512Vectors::new(Isa::best()) {
            {
                let ($tiles, $vectors) = (EmulatedTiles, vectors.without_bf16());
                ran.push(begin("emulated tiles with AVX-512"));
                $body
            }
            if Isa::best().has_avx512_bf16() {
                let ($tiles, $vectors) = (EmulatedTiles, vectors);
                ran.push(begin("emulated tiles with AVX-512 bf16"));
                $body
            }
            if let Some(tiles) = crate::tiles::dot::Avx512Dot::new(Isa::best()) {
                let ($tiles, $vectors) = (tiles, vectors);
                ran.push(begin("AVX-512 bf16 dot products"));
                $body
            }
            if let Some(tiles) = crate::tiles::fp16::Avx512Fp16::new(Isa::best()) {
                let ($tiles, $vectors) = (tiles, vectors);
                ran.push(begin("AVX-512 multiply-adds of fp16"));
                $body
            }
            if let Some(tiles) = crate::tiles::fma::Avx512Fma::new(Isa::best()) {
                let ($tiles, $vectors) = (tiles, vectors);
                ran.push(begin("AVX-512 multiply-adds"));
                $body
            }
            if let Some(amx) = Isa::best().amx() {
                let ($tiles, $vectors) = (NativeTiles::new(amx), vectors);
                ran.push(begin("AMX"));
                $body
            }
        }
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if Isa::best().amx().is_none() {
            let ($tiles, $vectors) = (crate::tiles::trap::tiles(), PortableVectors);
            ran.push(begin("the instructions of AMX, trapped"));
            $body
        }
        eprintln!("ran on: {}; {}", ran.join(", "), Isa::amx_status());
    }};
}

mod exact;
mod precision;
