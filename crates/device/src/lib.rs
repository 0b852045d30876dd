//! Device code that both GPU vendors share, and the way a kernel's source is put together.
//!
//! The C++ lies in `include/omniflash`: headers that include nothing but each other, so that NVRTC, hipRTC, nvcc and
//! clang compile them with nothing on disk. [`HEADERS`] embeds them. [`parameters`] is the one place where the
//! structs between host and kernel are written. A [`TranslationUnit`] is a kernel file with its headers, the user's
//! functors and the choices of one instance, as one flat text.
//!
//! ```
//! use omniflash_device::{COMBINE, HEADERS, TranslationUnit};
//!
//! let unit = TranslationUnit::new(COMBINE, HEADERS, "omniflash_combine").with_type("Out", "float");
//! let source = unit.source();
//! assert!(source.contains("omniflash_combine") && !source.contains("#include \"omniflash"));
//! ```

mod launch;
mod pack_mask;
pub mod parameters;
mod peak;
mod translation_unit;

pub use launch::{Launch, Workspace};
pub use pack_mask::{pack_mask, pack_mask_launch};
pub use peak::{PeakKernel, PeakParameters, PeakWork};
pub use translation_unit::{SourceFile, TranslationUnit};

macro_rules! header {
    ($name:literal) => {
        SourceFile {
            name: concat!("omniflash/", $name),
            text: include_str!(concat!("../include/omniflash/", $name)),
        }
    };
}

/// The shared headers, by the names that kernels include them by.
pub const HEADERS: &[SourceFile] = &[
    header!("arch.hpp"),
    header!("divisor.hpp"),
    header!("functor.hpp"),
    header!("keys.hpp"),
    header!("kv_append.hpp"),
    header!("masks.hpp"),
    header!("numeric.hpp"),
    header!("online_softmax.hpp"),
    header!("parameters.hpp"),
    header!("peak.hpp"),
    header!("schedule.hpp"),
    header!("score_mods.hpp"),
    header!("score_tensor.hpp"),
    header!("seen_blocks.hpp"),
    header!("sequence.hpp"),
];

/// The kernel that joins the partitions of a split sequence.
pub const COMBINE: SourceFile = header!("combine.hpp");
/// Attention by its definition.
pub const NAIVE: SourceFile = header!("naive.hpp");
/// The kernel that packs ids of documents for the kernels that follow.
pub const PACK_DOCUMENTS: SourceFile = header!("pack_documents.hpp");
/// The kernel that packs a mask tensor for the kernels that follow.
pub const PACK_MASK: SourceFile = header!("pack_mask.hpp");
/// The kernel that checks page and lookup tables.
pub const VERIFY_PAGE_TABLE: SourceFile = header!("verify_page_table.hpp");
