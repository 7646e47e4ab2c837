//! The two element types of activations and weights.

use crate::tiles::MatmulOutput;
use half::bf16;

/// A number as it is stored: `f32`, or `bf16` that is widened to `f32` for every computation.
pub trait Element:
    MatmulOutput + Copy + Default + Send + Sync + PartialEq + std::fmt::Debug + 'static
{
    /// Widens; exact.
    fn to_f32(self) -> f32;
    /// Narrows, rounding to nearest, ties to even; NaN stays NaN.
    fn from_f32(value: f32) -> Self;
    /// The slice itself where elements already are `f32`; lets a matmul read operands in place.
    fn as_f32(slice: &[Self]) -> Option<&[f32]>;
    /// The slice itself where elements are `bf16`: what tiles multiply.
    fn as_bf16(slice: &[Self]) -> Option<&[bf16]>;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn as_f32(slice: &[f32]) -> Option<&[f32]> {
        Some(slice)
    }
    #[inline(always)]
    fn as_bf16(_: &[f32]) -> Option<&[bf16]> {
        None
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    // Written without branches, unlike `half`'s, so that it vectorises.
    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }
    #[inline(always)]
    fn as_f32(_: &[bf16]) -> Option<&[f32]> {
        None
    }
    #[inline(always)]
    fn as_bf16(slice: &[bf16]) -> Option<&[bf16]> {
        Some(slice)
    }
}

per_isa! {
    /// Converts a slice: `to[i] = from[i]`, rounded where `to` is narrower. The lengths must agree.
    pub fn convert<A: Element, B: Element>(from: &[A], to: &mut [B]) {
        assert_eq!(from.len(), to.len(), "convert: lengths differ");
        for (t, f) in to.iter_mut().zip(from) {
            *t = B::from_f32(f.to_f32());
        }
    }
}

per_isa! {
    /// `to[i] += from[i]`. The lengths must agree.
    pub fn add_assign<A: Element, B: Element>(from: &[A], to: &mut [B]) {
        assert_eq!(from.len(), to.len(), "add_assign: lengths differ");
        for (t, f) in to.iter_mut().zip(from) {
            *t = B::from_f32(t.to_f32() + f.to_f32());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bf16_rounding_agrees_with_the_half_crate(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            let ours = <bf16 as Element>::from_f32(value);
            if value.is_nan() {
                prop_assert!(ours.is_nan());
            } else {
                prop_assert_eq!(ours.to_bits(), bf16::from_f32(value).to_bits());
            }
        }
    }
}
