//! Exact attention ("flash attention") for any machine: one crate, one binary, the backend chosen at run time.
//!
//! ```
//! use omniflash::{AttentionOptions, Mask, Registry, Tensor, attention};
//!
//! let registry = Registry::discover();             // probes every backend; absence is data, not an error
//! let backend = registry.best()?;                  // or get("cpu"), or OMNIFLASH_BACKEND=cpu
//! let stream = backend.stream()?;
//! let (q, kv) = (vec![0.5f32; 2 * 7 * 8 * 64], vec![0.25f32; 2 * 7 * 2 * 64]);
//! let q = Tensor::from_slice(&*backend, &q, &[2, 7, 8, 64], &stream)?;   // batch, seqlen, heads, head_dim
//! let k = Tensor::from_slice(&*backend, &kv, &[2, 7, 2, 64], &stream)?;
//! let v = Tensor::from_slice(&*backend, &kv, &[2, 7, 2, 64], &stream)?;
//! let result = attention(&*backend, &q, (&k, &v), &AttentionOptions::new().mask(Mask::Causal))?;
//! assert_eq!(result.out.to_vec::<f32>(&*backend, &stream)?[0], 0.25);
//! # Ok::<(), omniflash::Error>(())
//! ```
//!
//! Host slices need no copy on the CPU: [`TensorRef::from_slice`] borrows them.
//!
//! - [`Registry`] finds the backends of the machine and says why others are absent.
//! - [`attention`] computes into new memory, [`attention_into`] into yours, [`attention_on_stream`] on a stream of
//!   yours without waiting.
//! - [`kv_append`] writes new keys and values into a cache, [`kv_append_on_stream`] without waiting.
//! - [`Query`] and [`KvCache`] say how the batch is laid out: padded, ragged, continuous, paged.
//! - [`AttentionOptions`] says the rest: [`Mask`], [`ScoreMod`], sinks, log-sum-exp, tuning.
//! - [`seed`] has the three entry points of Modular's Mojo `flash_attention`, parameter by parameter.
//!
//! # Semantics
//!
//! ```text
//! s[b,h,i,j] = softmax_scale * dot(q[b,i,h,:], k[b,j,h / group_size,:])
//! s          = score modifications, in the order given
//! visible    = mask(b, h, query_start[b] + i, j)            query_start defaults to kv_len - q_len
//! p          = softmax over the visible j, with the sink of h as one more logit without a value
//! out        = sum_j p_j v[b,j,h / group_size,:]            lse = ln(sum_j exp s_j + exp sink)
//! ```
//!
//! - Causal masks and windows align bottom-right: the last query sits at the last key.
//! - A row that sees no key has output 0 and log-sum-exp minus infinity (the sink, if there is one); never NaN.
//! - What lies beyond a sequence's length, or in unused pages, may hold NaN and is not seen.
//! - Accumulation is in f32; the same plan gives the same bits on every run.
//!
#![doc = include_str!("tour.md")]

// The README's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

mod call;
mod registry;
pub mod seed;

pub use call::{
    AttentionOutput, attention, attention_into, attention_on_stream, kv_append, kv_append_on_stream,
};
pub use omniflash_core::*;
pub use registry::{AbsentBackend, Registry};
