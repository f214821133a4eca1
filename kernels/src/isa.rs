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

/// That this machine has AMX with bf16 beside the best [`Level`] and that this process may use it. No level of its own: what it
/// computes has other bits, so that a caller says for which rows it is used.
#[derive(Clone, Copy, Debug)]
#[cfg(target_arch = "x86_64")]
pub struct Amx(());

/// No machine has it.
#[derive(Clone, Copy, Debug)]
#[cfg(not(target_arch = "x86_64"))]
pub struct Amx(std::convert::Infallible);

impl Amx {
    /// `None` where there is none, or the system refuses it. Asks the system to give the process room for tiles, which takes
    /// threads that are there already and those to come; asking again changes nothing.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if Isa::detect().level() == Level::Avx512Vnni && has_tiles() && may_use_tiles() {
            return Some(Self(()));
        }
        None
    }

    /// There is no value of it.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn never(self) -> ! {
        match self.0 {}
    }
}

/// Whether the processor has tiles with bf16, and the system saves them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    /// XTILECFG and XTILEDATA.
    const SAVED: u64 = 3 << 17;
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: OSXSAVE says that the register can be read.
    features & BF16_AND_TILES == BF16_AND_TILES && unsafe { _xgetbv(0) } & SAVED == SAVED
}

/// Asks for XTILEDATA (Linux: Documentation/arch/x86/xstate.rst): without it the first use of a tile is a fault.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: changes nothing but what the process may use; the kernel writes no memory, and the two registers besides rax.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XTILEDATA,
            out("rcx") _, out("r11") _, options(nostack),
        );
    }
    result == 0
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
