//! One body, compiled once per instruction set.

/// Defines a function whose body is compiled for every instruction set and chosen by its first argument, an
/// [`Isa`](crate::Isa). The compiler vectorises each copy with the registers of that set; everything the body
/// calls must be `#[inline(always)]` to take part. Where there are fused multiply-adds, `exp`, `sigmoid` and `softplus` in the
/// body itself are those of [`crate::math::fused`].
macro_rules! per_isa {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$($generic:ident : $bound:path),*>)? (
            $($arg:ident : $ty:ty),* $(,)?
        ) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "kernels take slices and their shape")]
        $vis fn $name $(<$($generic: $bound),*>)? (isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable $(<$($generic: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$($generic: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
                #[allow(unused_imports, reason = "not every body has an exponential")]
                use $crate::math::fused::*;
                $body
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512 $(<$($generic: $bound),*>)? ($($arg: $ty),*) $(-> $ret)? {
                #[allow(unused_imports, reason = "not every body has an exponential")]
                use $crate::math::fused::*;
                $body
            }

            match isa.level() {
                $crate::Level::Portable => portable($($arg),*),
                // SAFETY: an `Isa` of this level exists only where the CPU has these features.
                #[cfg(target_arch = "x86_64")]
                $crate::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above; the AMX level includes AVX-512.
                #[cfg(target_arch = "x86_64")]
                $crate::Level::Avx512 | $crate::Level::Amx => unsafe { avx512($($arg),*) },
                #[cfg(not(target_arch = "x86_64"))]
                _ => portable($($arg),*),
            }
        }
    };
}
