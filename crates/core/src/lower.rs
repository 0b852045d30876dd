//! Masks and score modifications as what a GPU's compiler and a kernel launch need: a C++ type and packed bytes.
//!
//! The shared device code holds a struct for every built-in mask and score modification and templates that join
//! them. Lowering names the struct, packs its members and collects the sources of users' functors:
//!
//! | tree | type | members |
//! |---|---|---|
//! | `Mask::None` | `NoMask` | |
//! | `Mask::Causal` | `Causal` | |
//! | `Mask::SlidingWindow` | `SlidingWindow` | i32 left, right (at most 2^30) |
//! | `Mask::Chunked` | `Chunked` | i32 size |
//! | `Mask::PrefixLm` | `PrefixLm` | vector |
//! | `Mask::Document` | `Document` | address, i64 batch stride, i64 stride, i32 columns |
//! | `Mask::Dense` of bool | `DenseMask` | address, i64 strides of batch, head, row, key |
//! | `Mask::Dense` of a float `T` | `AdditiveMask<T>` | the same |
//! | the same, packed by the launch | `PackedDocument` | a [`MaskPacking`], see [`PackedSlot`], then those of `Document` |
//! | bool, packed by the launch | `PackedMask` | a [`MaskPacking`] |
//! | float `T`, packed | `PackedAdditive<T>` | a [`MaskPacking`], then address and strides |
//! | `Mask::And`, `Or`, `Not` | `And<A, B>`, `Or<A, B>`, `Not<A>` | those of A, then those of B |
//! | `Mask::Custom` with source | `source0::Name` | the user's bytes |
//! | `Mask::Custom` without | `TableMask` | a [`MaskTable`], see [`TableSlot`] |
//! | `ScoreMod::Identity` | `Identity` | |
//! | `ScoreMod::Softcap` | `Softcap` | f32 cap |
//! | `ScoreMod::Alibi` | `Alibi` | i32 number of heads |
//! | with slopes of type `T` | `AlibiSlopes<T>` | vector |
//! | `ScoreMod::Bias` of type `T` | `Bias<T>` | address, i64 strides of batch, head, row, key |
//! | `ScoreMod::Then` | `Then<A, B>` | those of A, then those of B |
//! | `ScoreMod::Custom` with source | `source0::Name` | the user's bytes |
//!
//! A vector is an address and an i64 stride. `T` is `float`, `float16` or `bfloat16`; of tensors of scores it is followed by
//! `, 2` where two keys' values can be loaded at once.
//!
//! **Layout.** The parameters are the leaves of the mask in order, then those of the score modification; every leaf
//! begins at a multiple of [`LEAF_ALIGNMENT`] bytes and takes at least so many, zeros after its members.
//!
//! Trees are brought to a canonical form first, so that equal functions share a kernel: `None` leaves joins, double
//! negation cancels, `ChunkedCausal` is `And<Chunked, Causal>`, a window unbounded to the left and closed to the
//! right is `Causal`, an unbounded one `None`.

mod functors;
mod packing;
mod table;
#[cfg(test)]
mod tests;

pub use functors::{FunctorSpec, LEAF_ALIGNMENT, PackedSlot, TableSlot, dense_strides};
pub use packing::MaskPacking;
pub use table::{MaskTable, TABLE_BLOCK, TableExtent};
