//! The vendor-free part of omniflash: what attention is, said in types, and the float64 reference that all backends
//! are checked against.
//!
//! One way leads through every backend: a caller's tensors and [`AttentionOptions`] are validated once into an
//! [`AttentionProblem`]; a [`Backend`] plans it ([`AttentionPlan`], host only, pure) and launches it.
//!
//! ```
//! use omniflash_core::{AttentionOptions, AttentionProblem, KvCache, Mask, Query, ReferenceBackend, Stream};
//! use omniflash_core::{TensorMut, TensorRef, run};
//!
//! let (q, k, v) = ([1.0f32, 0.0], [1.0f32, 0.0, 0.0, 1.0], [1.0f32, 2.0, 3.0, 4.0]);
//! let mut out = [0.0f32; 2];
//! let problem = AttentionProblem::new(
//!     Query::padded(TensorRef::from_slice(&q, &[1, 1, 1, 2])?),
//!     KvCache::dense(TensorRef::from_slice(&k, &[1, 2, 1, 2])?, TensorRef::from_slice(&v, &[1, 2, 1, 2])?),
//!     TensorMut::from_slice(&mut out, &[1, 1, 1, 2])?,
//!     None,
//!     &AttentionOptions::new().softmax_scale(0.0).mask(Mask::Causal),
//! )?;
//! run(&ReferenceBackend::new(), &problem, &Stream::host())?;
//! drop(problem); // it borrows `out`
//! assert_eq!(out, [2.0, 3.0]);
//! # Ok::<(), omniflash_core::Error>(())
//! ```

pub mod backend;
mod config;
mod device;
mod dtype;
mod error;
mod kv_append;
mod kv_cache;
mod layout;
pub mod lower;
pub mod mask;
pub mod measure;
mod options;
mod owned;
mod plan;
mod problem;
pub mod reference;
mod score_mod;
mod source;
mod tensor;
mod tolerance;
pub mod tuning;

pub use backend::{Backend, BackendInfo, Support, run};
pub use config::{Algorithm, AttentionConfig, F32Arithmetic, Swizzle};
pub use device::{Buffer, DeviceId, Stream};
pub use dtype::{DType, Element, Float, Index};
pub use error::{Error, Result};
pub use kv_append::{AppendAt, KvAppend, KvAppendShape, KvCacheMut, NewKv};
pub use kv_cache::{KvCache, KvKind, Query};
pub use layout::{Layout, MAX_RANK};
pub use mask::{Mask, MaskFunction, ScoreIndex, Tile, TileStatus};
pub use options::AttentionOptions;
pub use owned::Tensor;
pub use plan::AttentionPlan;
pub use problem::{AttentionProblem, OutputShape, ProblemShape, verify_page_table};
pub use reference::ReferenceBackend;
pub use score_mod::{ScoreFunction, ScoreMod, alibi_slope, alibi_slopes};
pub use source::DeviceSource;
pub use tensor::{HostView, TensorMut, TensorRef};
pub use tolerance::{Deviation, Expectation, Tolerance};
