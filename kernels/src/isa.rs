//! Which vector instructions this machine has. Not here: the operations that use them.

/// The vector instructions to use. Every choice gives the same bits in the f32 reference operations; what the others
/// promise stands beside each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

/// Never above what [`Isa::detect`] found: the field of [`Isa`] is private to this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// No more than the target guarantees.
    Plain,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, VL and DQ, with the above.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 VNNI, BF16 and VBMI, with the above.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

impl Isa {
    /// No vector instructions beyond the target's own: the reference.
    #[must_use]
    pub const fn plain() -> Self {
        Self(Level::Plain)
    }

    /// The best that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().last().copied().unwrap_or(Self::plain())
    }

    /// All that this machine has, from plain to best.
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut found = vec![Self::plain()];
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            found.push(Self(Level::Avx2));
            if has_avx512() {
                found.push(Self(Level::Avx512));
                if has_avx512_dots() {
                    found.push(Self(Level::Avx512Vnni));
                }
            }
        }
        found
    }

    pub(crate) const fn level(self) -> Level {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512_dots() -> bool {
    is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512vbmi")
}

/// Defines a function whose body is compiled once for each [`Level`]. The body is plain Rust; the compiler vectorises it
/// but never reorders or fuses its arithmetic, so that each version gives the same bits.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::Isa, $($arg: $type),*) {
            #[inline(always)]
            fn body($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $type),*) { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            fn avx512($($arg: $type),*) { body($($arg),*) }
            match isa.level() {
                $crate::isa::Level::Plain => body($($arg),*),
                // SAFETY: this level exists only where `Isa::available` (isa.rs) found the features that `avx2` enables.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: this level exists only where `Isa::available` (isa.rs) found the features that `avx512` enables.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Level::Avx512 | $crate::isa::Level::Avx512Vnni => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use multiversion;
