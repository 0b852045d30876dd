//! A prompt with grouped heads, then decode steps over a paged cache.

use std::ops::Range;

use indicatif::ProgressBar;
use omniflash::{
    AttentionOptions, AttentionProblem, Backend, DType, Expectation, KvCache, Layout, Mask, Query,
    ReferenceBackend, Result, Stream, Tensor, TensorRef,
};

use super::accuracy::{Accuracy, Rate, Step};
use super::mirrored::Mirrored;
use crate::execution::{Execution, execute};
use crate::synthetic::{Distribution, filled, shuffled};
use crate::verify::on_host;

/// How large the generation is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) prompt: usize,
    pub(super) steps: usize,
    pub(super) page_size: usize,
    pub(super) dtype: DType,
}

/// Calls of the prefill of which the fastest counts.
const PREFILL_REPEATS: usize = 3;
/// One decode step in so many is checked.
const CHECKED_STEPS: usize = 8;
/// Rows of the prefill that are checked in one piece.
const SAMPLE_ROWS: usize = 8;

impl Sizes {
    pub(super) const FULL: Sizes = Sizes {
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        prompt: 1024,
        steps: 32,
        page_size: 64,
        dtype: DType::BF16,
    };
    pub(super) const QUICK: Sizes = Sizes {
        num_heads: 8,
        num_kv_heads: 2,
        head_dim: 64,
        prompt: 128,
        steps: 16,
        page_size: 16,
        ..Sizes::FULL
    };

    /// Advances of the progress bar in [`Generation::run`].
    pub(super) fn progress_steps(&self) -> usize {
        2 + self.steps
    }

    fn tokens(&self) -> usize {
        self.prompt + self.steps
    }

    fn group_size(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// 4 H S S D, halved for causal.
    fn prefill_flops(&self) -> f64 {
        2.0 * (self.num_heads * self.prompt * self.prompt * self.head_dim) as f64
    }

    /// Of all keys and values in the middle of the generation, once.
    fn decode_bytes(&self) -> f64 {
        let keys = self.prompt + self.steps / 2;
        (2 * keys * self.num_kv_heads * self.head_dim * self.dtype.size()) as f64
    }
}

/// How the generation went.
pub(super) struct Generation {
    pub(super) steps: Vec<Step>,
}

impl Generation {
    pub(super) fn run(backend: &dyn Backend, sizes: &Sizes, bar: &ProgressBar) -> Result<Self> {
        bar.set_message("making a prompt");
        let tensors = Tensors::new(backend, sizes)?;
        bar.inc(1);
        bar.set_message("prefill");
        let prefill = tensors.prefill(backend)?;
        bar.inc(1);
        let decode = tensors.decode(backend, bar)?;
        Ok(Generation { steps: vec![prefill, decode] })
    }
}

struct Tensors<'s> {
    sizes: &'s Sizes,
    /// All calls of a generation are on one stream, as an engine's are.
    stream: Stream,
    /// `[1, tokens, num_heads, head_dim]`.
    q: Mirrored,
    /// `[1, tokens, num_kv_heads, head_dim]`.
    k: Mirrored,
    v: Mirrored,
    /// The same keys and values in pages `[num_pages, page_size, num_kv_heads, head_dim]`.
    k_pages: Mirrored,
    v_pages: Mirrored,
    /// `[1, num_pages / 2]`: every second page holds nothing.
    page_table: Mirrored,
    /// `[steps]`: keys at each step.
    lengths: Mirrored,
}

impl<'s> Tensors<'s> {
    fn new(backend: &dyn Backend, sizes: &'s Sizes) -> Result<Self> {
        let (host, host_stream) = (ReferenceBackend::new(), Stream::host());
        let stream = backend.stream()?;
        let mirrored = |tensor: Tensor| Mirrored::new(backend, tensor, &stream);
        let normal = |heads: usize, seed: u64| {
            let shape = [1, sizes.tokens(), heads, sizes.head_dim];
            filled(&host, sizes.dtype, &shape, Distribution::Normal, seed, &host_stream)
        };
        let integers =
            |values: &[i32], shape: &[usize]| Tensor::from_slice(&host, values, shape, &host_stream);
        let columns = sizes.tokens().div_ceil(sizes.page_size);
        let mut table = shuffled(2 * columns);
        table.truncate(columns);
        let lengths: Vec<i32> = (sizes.prompt + 1..=sizes.tokens()).map(|length| length as i32).collect();
        let (k, v) = (normal(sizes.num_kv_heads, 2)?, normal(sizes.num_kv_heads, 3)?);
        Ok(Tensors {
            sizes,
            k_pages: mirrored(paged(&k, &table, sizes)?)?,
            v_pages: mirrored(paged(&v, &table, sizes)?)?,
            q: mirrored(normal(sizes.num_heads, 1)?)?,
            k: mirrored(k)?,
            v: mirrored(v)?,
            page_table: mirrored(integers(&table, &[1, columns])?)?,
            lengths: mirrored(integers(&lengths, &[sizes.steps])?)?,
            stream,
        })
    }

    fn prefill(&self, backend: &dyn Backend) -> Result<Step> {
        let [q, k, v] =
            [&self.q, &self.k, &self.v].map(|tensor| tensor.device().slice(1, 0, self.sizes.prompt));
        let (q, k, v) = (q?, k?, v?);
        let options = AttentionOptions::new().mask(Mask::Causal);
        let on = (backend, &self.stream);
        let execution = execute(on, Query::padded(q), KvCache::dense(k, v), &options, PREFILL_REPEATS)?;
        Ok(Step {
            name: format!("prefill of {} tokens", self.sizes.prompt),
            seconds: Some(execution.elapsed.as_secs_f64()),
            work: Some(Rate::Flops(self.sizes.prefill_flops())),
            accuracy: self.prefill_accuracy(&execution)?,
            plan: Some(execution.plan.to_string()),
        })
    }

    /// Checks first, middle and last rows of the first and the last group of heads.
    fn prefill_accuracy(&self, execution: &Execution) -> Result<Accuracy> {
        let Sizes { prompt, num_kv_heads, .. } = *self.sizes;
        let out = on_host(&execution.out, execution.shape.dtype, &execution.shape.out)?;
        let mut worst: Option<Accuracy> = None;
        for first_row in [0, prompt / 2, prompt - SAMPLE_ROWS] {
            for kv_head in [0, num_kv_heads - 1] {
                let sample = self.prefill_sample(&out.view(), first_row, kv_head)?;
                worst = Some(worst.map_or(sample, |worst| worst.worse(sample)));
            }
        }
        Ok(worst.expect("there are six samples"))
    }

    fn prefill_sample(&self, out: &TensorRef<'_>, first_row: usize, kv_head: usize) -> Result<Accuracy> {
        let group = self.sizes.group_size();
        let (rows, keys) = (first_row..first_row + SAMPLE_ROWS, 0..self.sizes.prompt);
        let (heads, key_heads) = (kv_head * group..(kv_head + 1) * group, kv_head..kv_head + 1);
        let start = [first_row as i32];
        let options =
            AttentionOptions::new().mask(Mask::Causal).query_start(TensorRef::from_slice(&start, &[1])?);
        accuracy(
            Query::padded(part(&self.q.host(), &rows, &heads)?),
            KvCache::dense(
                part(&self.k.host(), &keys, &key_heads)?,
                part(&self.v.host(), &keys, &key_heads)?,
            ),
            &options,
            &part(out, &rows, &heads)?,
        )
    }

    fn decode(&self, backend: &dyn Backend, bar: &ProgressBar) -> Result<Step> {
        let Sizes { prompt, steps, .. } = *self.sizes;
        let options = AttentionOptions::new().mask(Mask::Causal);
        let mut seconds = Vec::new();
        let mut worst: Option<Accuracy> = None;
        let mut plan = None;
        for step in 0..steps {
            bar.set_message(format!("decode of token {}", prompt + step + 1));
            let [(q, kv), (host_q, host_kv)] = self.decode_arguments(step)?;
            // The first call of all warms up.
            let execution = execute((backend, &self.stream), q, kv, &options, if step == 0 { 2 } else { 1 })?;
            seconds.push(execution.elapsed.as_secs_f64());
            if step % CHECKED_STEPS == 0 || step + 1 == steps {
                let out = on_host(&execution.out, execution.shape.dtype, &execution.shape.out)?;
                let sample = accuracy(host_q, host_kv, &options, &out.view())?;
                worst = Some(worst.map_or(sample, |worst| worst.worse(sample)));
            }
            plan = Some(execution.plan.to_string());
            bar.inc(1);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(Step {
            name: format!("decode of {steps} tokens, median"),
            seconds: Some(seconds[seconds.len() / 2]),
            work: Some(Rate::Bytes(self.sizes.decode_bytes())),
            accuracy: worst.expect("the last step is checked"),
            plan,
        })
    }

    /// What one step computes, for the backend and for the reference.
    fn decode_arguments(&self, step: usize) -> Result<[(Query<'_>, KvCache<'_>); 2]> {
        let token = self.sizes.prompt + step;
        let of = |place: usize| -> Result<_> {
            let q = self.q.both()[place].slice(1, token, token + 1)?;
            let kv = KvCache::Paged {
                k: self.k_pages.both()[place].clone(),
                v: self.v_pages.both()[place].clone(),
                page_table: self.page_table.both()[place].clone(),
                lengths: self.lengths.both()[place].slice(0, step, step + 1)?,
                max_seqlen: Some(token + 1),
            };
            Ok((Query::padded(q), kv))
        };
        Ok([of(0)?, of(1)?])
    }
}

/// Some rows and heads of a tensor `[batch, seqlen, heads, head_dim]`.
fn part<'t>(tensor: &TensorRef<'t>, rows: &Range<usize>, heads: &Range<usize>) -> Result<TensorRef<'t>> {
    tensor.slice(1, rows.start, rows.end)?.slice(2, heads.start, heads.end)
}

/// A dense tensor's rows in the pages of a table; the pages that the table leaves out hold NaN.
fn paged(dense: &Tensor, table: &[i32], sizes: &Sizes) -> Result<Tensor> {
    let (host, stream) = (ReferenceBackend::new(), Stream::host());
    let row_bytes = sizes.num_kv_heads * sizes.head_dim * sizes.dtype.size();
    let num_pages = 2 * table.len();
    // All bits set is a NaN of every float type.
    let mut pages = vec![0xFF; num_pages * sizes.page_size * row_bytes];
    for (token, row) in dense.to_memory(&host, &stream)?.chunks_exact(row_bytes).enumerate() {
        let page = table[token / sizes.page_size] as usize;
        let at = (page * sizes.page_size + token % sizes.page_size) * row_bytes;
        pages[at..at + row_bytes].copy_from_slice(row);
    }
    let layout = Layout::contiguous(&[num_pages, sizes.page_size, sizes.num_kv_heads, sizes.head_dim])?;
    Tensor::from_memory(&host, &pages, sizes.dtype, layout, &stream)
}

/// Compares a result in host memory with the reference.
fn accuracy<'a>(
    query: Query<'a>,
    kv: KvCache<'a>,
    options: &AttentionOptions<'a>,
    found: &TensorRef<'_>,
) -> Result<Accuracy> {
    let shape = AttentionProblem::output_shape(&query, &kv)?;
    let mut out = Tensor::zeros(&ReferenceBackend::new(), shape.dtype, &shape.out, &Stream::host())?;
    let problem = AttentionProblem::new(query, kv, out.view_mut(), None, options)?;
    let expectation = Expectation::of(&problem)?;
    Ok(Accuracy { deviation: expectation.compare(&problem, found, None), tolerance: expectation.tolerance })
}
