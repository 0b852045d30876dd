//! Instruction sets, found at run time.

use std::fmt;
use std::str::FromStr;

use omniflash_core::{Error, Result};

#[cfg(target_arch = "x86_64")]
use crate::amx;

/// Overrides the detected instruction set: `amx-bf16`, `avx512-bf16`, `avx512`, `avx2`, `neon` or `scalar`.
pub const ISA_VARIABLE: &str = "OMNIFLASH_CPU_ISA";

/// An instruction set that kernels are compiled for; ordered from the best to the one that runs anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// AVX-512 with dot products of bf16 pairs, and products of whole matrices of them (AMX-TILE, AMX-BF16) for many
    /// query rows.
    AmxBf16,
    /// AVX-512 (F, BW, DQ, VL) with dot products of bf16 pairs.
    Avx512Bf16,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// Advanced SIMD of 64-bit Arm.
    Neon,
    /// Portable code, 4 lanes.
    Scalar,
    /// [`AmxBf16`](Isa::AmxBf16) with its matrix instructions computed one by one, on processors with AVX512-BF16: to
    /// check those kernels where the instructions are not, never to be fast.
    #[cfg(feature = "amx-emulation")]
    AmxBf16Emulated,
}

impl Isa {
    /// All, best first.
    pub const ALL: &[Isa] = &[
        Isa::AmxBf16,
        Isa::Avx512Bf16,
        Isa::Avx512,
        Isa::Avx2,
        Isa::Neon,
        Isa::Scalar,
        #[cfg(feature = "amx-emulation")]
        Isa::AmxBf16Emulated,
    ];

    /// Whether this processor has the instructions, and the operating system lets them be used.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::AmxBf16 => Isa::Avx512Bf16.is_available() && amx::absence().is_none(),
            #[cfg(all(target_arch = "x86_64", feature = "amx-emulation"))]
            Isa::AmxBf16Emulated => Isa::Avx512Bf16.is_available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && Isa::Avx2.is_available()
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Isa::Scalar => true,
            #[allow(unreachable_patterns, reason = "which patterns remain depends on the target")]
            _ => false,
        }
    }

    /// All that this processor has, best first; never empty.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.iter().copied().filter(|isa| isa.is_available()).collect()
    }

    /// The best that this processor has.
    pub fn best() -> Isa {
        Isa::ALL.iter().copied().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    /// The one that [`ISA_VARIABLE`] names; the best where it is not set or empty.
    ///
    /// # Errors
    /// [`Error::Value`] when the variable names none, [`Error::Absent`] when it names one that this processor lacks.
    pub fn from_environment() -> Result<Isa> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if name.is_empty() => Ok(Isa::best()),
            Ok(name) => name.parse::<Isa>()?.checked(),
            Err(std::env::VarError::NotPresent) => Ok(Isa::best()),
            Err(std::env::VarError::NotUnicode(name)) => {
                Err(Error::value(ISA_VARIABLE, name.to_string_lossy(), names(Isa::ALL)))
            }
        }
    }

    /// Itself, if this processor has it.
    ///
    /// # Errors
    /// [`Error::Absent`] that lists what this processor has.
    pub fn checked(self) -> Result<Isa> {
        if self.is_available() {
            return Ok(self);
        }
        let why = self.absence().map_or(String::new(), |why| format!(" ({why})"));
        Err(Error::Absent {
            backend: "cpu".into(),
            reason: format!("this processor has no {self}{why}, only {}", names(&Isa::available())),
        })
    }

    /// What is missing, where the name alone does not say.
    fn absence(self) -> Option<&'static str> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::AmxBf16 => amx::absence(),
            _ => None,
        }
    }

    /// Whether it has dot products of bf16 pairs.
    pub(crate) const fn has_bf16_pairs(self) -> bool {
        matches!(self, Isa::Avx512Bf16) || self.has_bf16_matrices()
    }

    /// Whether it has products of matrices of bf16 pairs.
    pub(crate) const fn has_bf16_matrices(self) -> bool {
        match self {
            Isa::AmxBf16 => true,
            #[cfg(feature = "amx-emulation")]
            Isa::AmxBf16Emulated => true,
            _ => false,
        }
    }

    /// The name, as [`ISA_VARIABLE`] and kernel ids have it.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::AmxBf16 => "amx-bf16",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Scalar => "scalar",
            #[cfg(feature = "amx-emulation")]
            Isa::AmxBf16Emulated => "amx-bf16-emulated",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Isa::ALL
            .iter()
            .copied()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| Error::value(ISA_VARIABLE, name, names(Isa::ALL)))
    }
}

fn names(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for &isa in Isa::ALL {
            assert_eq!(isa.name().parse::<Isa>().unwrap(), isa);
        }
        let error = "sse2".parse::<Isa>().unwrap_err().to_string();
        assert!(error.contains("OMNIFLASH_CPU_ISA is sse2") && error.contains("scalar"), "{error}");
    }

    #[test]
    fn the_best_is_the_first_available_and_scalar_always_is() {
        let available = Isa::available();
        assert_eq!(available[0], Isa::best());
        assert!(available.contains(&Isa::Scalar));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn matrices_are_there_or_absent_with_a_reason() {
        match Isa::AmxBf16.checked() {
            Ok(isa) => assert_eq!(isa, Isa::best()),
            Err(error) => {
                let error = error.to_string();
                let why = amx::absence().unwrap_or("avx512-bf16");
                assert!(error.contains("no amx-bf16") && error.contains(why), "{error}");
            }
        }
    }

    #[test]
    fn an_instruction_set_of_another_architecture_is_absent() {
        let other = if cfg!(target_arch = "aarch64") { Isa::Avx2 } else { Isa::Neon };
        assert!(matches!(other.checked(), Err(Error::Absent { .. })));
    }
}
