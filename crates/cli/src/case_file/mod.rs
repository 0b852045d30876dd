//! Case files: one format for tests, bug reports and the command line.
//!
//! A case is a safetensors file with the tensors of one attention, and optionally a JSON file with its options. Unknown
//! tensors, unknown keys and impossible values are errors that name the file, the key, the value and what was expected;
//! no file, however broken, makes the reader panic or allocate more than a small multiple of the file's size.
//!
//! | tensor | shape | type |
//! |---|---|---|
//! | `q` | `[B, Sq, H, D]`, ragged `[T, H, D]` | f32, f16, bf16 |
//! | `k`, `v` | `[B, Sk, Hkv, D]`, ragged `[Tk, Hkv, D]`, cache `[N, P, Hkv, D]`; D of `v` may differ | as `q` |
//! | `mask` | `[B, Sq, Sk]` or `[B, H, Sq, Sk]`; B, H may be 1 | bool, u8 or float |
//! | `bias` | `[B, H, Sq, Sk]`; B, H, Sq may be 1 | float |
//! | `sinks`, `alibi_slopes` | `[H]` | float |
//! | `q_lengths`, `kv_lengths`, `query_start`, `lookup_table`, `prefix_len` | `[B]` | integer |
//! | `cu_seqlens_q`, `cu_seqlens_k` | `[B + 1]` | integer |
//! | `page_table` | `[B, M]` | integer |
//! | `document_ids` | `[B, Sk]` | integer |
//!
//! Integers are i32, i64, u32 or u64 and must fit in i32; floats beside `q`, `k`, `v` may also be f64. The keys of the
//! JSON file are the fields of [`Options`].

mod case;
mod container;
mod error;
mod options;
mod schema;
mod tensor;
mod write;

pub use case::{Arguments, Case};
pub use container::{RawTensor, parse};
pub use error::{CaseError, Fault};
pub use options::{ConfigOptions, MaskOption, Options};
pub use write::{NamedTensor, to_bytes, write_atomically};
