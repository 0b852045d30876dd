//! Device code that both GPU vendors share, and the way a kernel's source is put together.
//!
//! The C++ lies in `include/omniflash`: headers that include nothing but each other, so that NVRTC, hipRTC, nvcc and
//! clang compile them with nothing on disk. [`HEADERS`] embeds them. [`parameters`] is the one place where the
//! structs between host and kernel are written. A [`TranslationUnit`] is a kernel file with its headers, the user's
//! functors and the choices of one instance, as one flat text.

pub mod parameters;
mod translation_unit;

pub use translation_unit::{SourceFile, TranslationUnit};

macro_rules! headers {
    ($($name:literal),* $(,)?) => {
        &[$(SourceFile {
            name: concat!("omniflash/", $name),
            text: include_str!(concat!("../include/omniflash/", $name)),
        },)*]
    };
}

/// The shared headers, by the names that kernels include them by.
pub const HEADERS: &[SourceFile] = headers![
    "arch.hpp",
    "functor.hpp",
    "keys.hpp",
    "kv_append.hpp",
    "masks.hpp",
    "numeric.hpp",
    "online_softmax.hpp",
    "parameters.hpp",
    "schedule.hpp",
    "score_mods.hpp",
    "sequence.hpp",
];
