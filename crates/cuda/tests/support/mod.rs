//! Attention problems with random tensors, on any backend, and their errors against the float64 reference.

use half::{bf16, f16};
use omniflash_core::{
    Algorithm, AttentionConfig, AttentionOptions, AttentionProblem, Backend, DType, Error, F32Arithmetic,
    KvCache, Mask, Query, ReferenceBackend, Result, ScoreMod, Stream, Tensor, TensorMut, reference,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// How the keys are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keys {
    Dense,
    Lengths,
    Ragged,
    Continuous,
    Paged(usize),
}

/// The masks tried; those with tensors make them themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaskKind {
    None,
    Causal,
    Window(usize, usize),
    ChunkedCausal(usize),
    PrefixLm,
    Document,
    DenseBool,
    DenseFloat,
    /// One plane whose blocks hide, do nothing, or add.
    DenseFloatBlocks,
    NotCausalOrWindow,
    Closure,
}

/// The score modifications tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScoreKind {
    Identity,
    SoftcapAlibi,
    Bias,
}

/// One problem.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub dtype: DType,
    pub batch: usize,
    pub seqlen: (usize, usize),
    pub heads: (usize, usize),
    pub dims: (usize, usize),
    pub keys: Keys,
    pub ragged_q: bool,
    /// Whether sequences have fewer rows than their tensor.
    pub padded_q: bool,
    pub mask: MaskKind,
    pub score: ScoreKind,
    pub sinks: bool,
    pub partitions: Option<usize>,
    pub algorithm: Algorithm,
    pub f32_arithmetic: Option<F32Arithmetic>,
}

impl Case {
    /// Two sequences of 100 queries and 150 keys, 4 heads over 2, head_dim 64.
    pub fn new(dtype: DType) -> Self {
        Case {
            dtype,
            batch: 2,
            seqlen: (100, 150),
            heads: (4, 2),
            dims: (64, 64),
            keys: Keys::Dense,
            ragged_q: false,
            padded_q: false,
            mask: MaskKind::None,
            score: ScoreKind::Identity,
            sinks: false,
            partitions: None,
            algorithm: Algorithm::Auto,
            f32_arithmetic: None,
        }
    }
}

/// Root mean square error over the root mean square of the reference, and the largest error of the log-sum-exp.
#[derive(Clone, Copy, Debug)]
pub struct Errors {
    pub relative_rms: f64,
    pub lse: f64,
}

impl Errors {
    /// What the specification allows.
    pub fn are_fine(&self, dtype: DType) -> bool {
        let limit = match dtype {
            DType::BF16 => 4e-3,
            DType::F16 => 6e-4,
            _ => 2e-5,
        };
        // Comparisons written so that NaN fails.
        self.relative_rms <= limit && self.lse <= 2e-4
    }
}

/// The data of a case on the host, from a fixed seed.
struct Data {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    q_shape: Vec<usize>,
    kv_shape: Vec<usize>,
    q_lengths: Vec<usize>,
    kv_lengths: Vec<usize>,
    table: Vec<i32>,
    bias: Vec<f32>,
    sinks: Vec<f32>,
}

fn offsets(lengths: &[usize]) -> Vec<i32> {
    let mut total = 0;
    std::iter::once(0)
        .chain(lengths.iter().map(|&length| {
            total += length as i32;
            total
        }))
        .collect()
}

impl Data {
    fn new(case: &Case) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut normal =
            |count: usize| (0..count).map(|_| StandardNormal.sample(&mut random)).collect::<Vec<f32>>();
        let ((sq, sk), (heads, kv_heads), (d, dv)) = (case.seqlen, case.heads, case.dims);
        let varying =
            |most: usize| (0..case.batch).map(|b| most - (b * 37) % most.max(1)).collect::<Vec<_>>();
        let q_lengths = if case.ragged_q || case.padded_q { varying(sq) } else { vec![sq; case.batch] };
        let kv_lengths = if case.keys == Keys::Dense { vec![sk; case.batch] } else { varying(sk) };
        let q_rows = if case.ragged_q { q_lengths.iter().sum() } else { case.batch * sq };
        // Pools have one block or page more than is used, in a shuffled order.
        let (blocks, block_rows) = match case.keys {
            Keys::Dense | Keys::Lengths => (case.batch, sk),
            Keys::Ragged => (1, kv_lengths.iter().sum()),
            Keys::Continuous => (case.batch + 1, sk),
            Keys::Paged(page_size) => (case.batch * sk.div_ceil(page_size) + 1, page_size),
        };
        let (q, bias, sinks) = (normal(q_rows * heads * d), normal(heads * sq * sk), normal(heads));
        let mut k = normal(blocks * block_rows * kv_heads * d);
        let mut v = normal(blocks * block_rows * kv_heads * dv);
        let mut table: Vec<i32> = (0..blocks as i32).collect();
        table.shuffle(&mut ChaCha8Rng::seed_from_u64(8));
        if case.keys != Keys::Ragged {
            let is_used = |block: usize, row: usize| match case.keys {
                Keys::Continuous => {
                    let b = table.iter().position(|&other| other as usize == block).expect("in the table");
                    b < case.batch && row < kv_lengths[b]
                }
                Keys::Paged(page_size) => {
                    let at = table.iter().position(|&other| other as usize == block).expect("in the table");
                    let pages = sk.div_ceil(page_size);
                    at / pages < case.batch && at % pages * page_size + row < kv_lengths[at / pages]
                }
                _ => row < kv_lengths[block],
            };
            // What no sequence uses must not be seen.
            for block in 0..blocks {
                for row in (0..block_rows).filter(|&row| !is_used(block, row)) {
                    let at = block * block_rows + row;
                    k[at * kv_heads * d..(at + 1) * kv_heads * d].fill(f32::NAN);
                    v[at * kv_heads * dv..(at + 1) * kv_heads * dv].fill(f32::NAN);
                }
            }
        }
        Data {
            q,
            k,
            v,
            q_shape: if case.ragged_q { vec![q_rows, heads] } else { vec![case.batch, sq, heads] },
            kv_shape: if case.keys == Keys::Ragged {
                vec![block_rows, kv_heads]
            } else {
                vec![blocks, block_rows, kv_heads]
            },
            q_lengths,
            kv_lengths,
            table,
            bias,
            sinks,
        }
    }
}

fn upload(
    backend: &dyn Backend,
    data: &[f32],
    shape: &[usize],
    dtype: DType,
    stream: &Stream,
) -> Result<Tensor> {
    match dtype {
        DType::F16 => {
            let data: Vec<f16> = data.iter().map(|&x| f16::from_f32(x)).collect();
            Tensor::from_slice(backend, &data, shape, stream)
        }
        DType::BF16 => {
            let data: Vec<bf16> = data.iter().map(|&x| bf16::from_f32(x)).collect();
            Tensor::from_slice(backend, &data, shape, stream)
        }
        _ => Tensor::from_slice(backend, data, shape, stream),
    }
}

/// Makes a case's tensors on a backend's device and gives the problem to `use_problem`; then returns its output and
/// log-sum-exp, widened.
pub fn with_problem<T>(
    backend: &dyn Backend,
    case: &Case,
    stream: &Stream,
    use_problem: impl FnOnce(&AttentionProblem<'_>) -> Result<T>,
) -> Result<(T, Vec<f32>, Vec<f32>)> {
    let data = Data::new(case);
    let ((sq, sk), (d, dv)) = (case.seqlen, case.dims);
    let with = |shape: &[usize], last: usize| shape.iter().copied().chain([last]).collect::<Vec<_>>();
    let q = upload(backend, &data.q, &with(&data.q_shape, d), case.dtype, stream)?;
    let k = upload(backend, &data.k, &with(&data.kv_shape, d), case.dtype, stream)?;
    let v = upload(backend, &data.v, &with(&data.kv_shape, dv), case.dtype, stream)?;
    let integers = |values: &[i32], shape: &[usize]| Tensor::from_slice(backend, values, shape, stream);
    let as_i32 = |values: &[usize]| values.iter().map(|&x| x as i32).collect::<Vec<_>>();
    let (batch, heads) = (case.batch, case.heads.0);
    let kv_lengths = integers(&as_i32(&data.kv_lengths), &[batch])?;
    let q_lengths = integers(&as_i32(&data.q_lengths), &[batch])?;
    let (cu_q, cu_k) = (
        integers(&offsets(&data.q_lengths), &[batch + 1])?,
        integers(&offsets(&data.kv_lengths), &[batch + 1])?,
    );
    let lookup = integers(&data.table[..batch.min(data.table.len())], &[batch.min(data.table.len())])?;
    let pages = match case.keys {
        Keys::Paged(page_size) => sk.div_ceil(page_size),
        _ => 0,
    };
    let page_table = integers(&data.table[..batch * pages], &[batch, pages])?;
    let prefix_len =
        integers(&(0..batch).map(|b| (b as i32 + 1) * sk as i32 / 4).collect::<Vec<_>>(), &[batch])?;
    let ids = integers(&(0..sk).map(|position| position as i32 / 23).collect::<Vec<_>>(), &[1, sk])?;
    let bools: Vec<u8> = (0..sq * sk).map(|i| u8::from(i * 7 % 5 != 0)).collect();
    let bools = Tensor::from_slice(backend, &bools, &[1, sq, sk], stream)?;
    let block = |i: usize| match (i / sk / 64 + i % sk / 200) % 3 {
        0 => f32::NEG_INFINITY,
        1 => 0.0,
        _ => data.bias[i],
    };
    let blocks: Vec<f32> = (0..sq * sk).map(block).collect();
    let blocks = upload(backend, &blocks, &[1, 1, sq, sk], case.dtype, stream)?;
    let bias = upload(backend, &data.bias, &[1, heads, sq, sk], case.dtype, stream)?;
    let sinks = Tensor::from_slice(backend, &data.sinks, &[heads], stream)?;
    let query = if case.ragged_q {
        Query::Ragged { q: q.view(), cu_seqlens: cu_q.view(), max_seqlen: Some(sq) }
    } else {
        Query::Padded { q: q.view(), lengths: case.padded_q.then(|| q_lengths.view()) }
    };
    let lengths = kv_lengths.view();
    let (k, v) = (k.view(), v.view());
    let max_seqlen = Some(sk);
    let kv = match case.keys {
        Keys::Dense => KvCache::dense(k, v),
        Keys::Lengths => KvCache::Dense { k, v, lengths: Some(lengths) },
        Keys::Ragged => KvCache::Ragged { k, v, cu_seqlens: cu_k.view(), max_seqlen },
        Keys::Continuous => KvCache::Continuous { k, v, lookup_table: lookup.view(), lengths, max_seqlen },
        Keys::Paged(_) => KvCache::Paged { k, v, page_table: page_table.view(), lengths, max_seqlen },
    };
    let mask = match case.mask {
        MaskKind::None => Mask::None,
        MaskKind::Causal => Mask::Causal,
        MaskKind::Window(left, right) => Mask::SlidingWindow { left, right },
        MaskKind::ChunkedCausal(size) => Mask::ChunkedCausal { size },
        MaskKind::PrefixLm => Mask::PrefixLm { prefix_len: prefix_len.view() },
        MaskKind::Document => Mask::Document { ids: ids.view() },
        MaskKind::DenseBool => Mask::Dense(bools.view()),
        MaskKind::DenseFloat => Mask::Dense(bias.view()),
        MaskKind::DenseFloatBlocks => Mask::Dense(blocks.view()),
        MaskKind::NotCausalOrWindow => (!Mask::Causal).or(Mask::SlidingWindow { left: 9, right: 0 }),
        MaskKind::Closure => {
            Mask::from_fn(|b, h, q, k| (q + 3 * k + b as i64) % 5 != 0 && (h == 0 || k <= q))
        }
    };
    let score_mod = match case.score {
        ScoreKind::Identity => ScoreMod::Identity,
        ScoreKind::SoftcapAlibi => ScoreMod::Softcap { cap: 5.0 }.then(ScoreMod::Alibi { slopes: None }),
        ScoreKind::Bias => ScoreMod::Bias(bias.view()),
    };
    let config = AttentionConfig {
        algorithm: case.algorithm,
        num_partitions: case.partitions,
        f32_arithmetic: case.f32_arithmetic,
        ..AttentionConfig::default()
    };
    let mut options = AttentionOptions::new().mask(mask).score_mod(score_mod).lse(true).config(config);
    if case.sinks {
        options = options.sinks(sinks.view());
    }
    let shape = AttentionProblem::output_shape(&query, &kv)?;
    let mut out = Tensor::zeros(backend, shape.dtype, &shape.out, stream)?;
    let mut lse = Tensor::zeros(backend, DType::F32, &shape.lse, stream)?;
    let problem = AttentionProblem::new(query, kv, out.view_mut(), Some(lse.view_mut()), &options)?;
    let used = use_problem(&problem)?;
    backend.synchronize(stream)?;
    drop(problem);
    let widened = match case.dtype {
        DType::F16 => out.to_vec::<f16>(backend, stream)?.into_iter().map(f16::to_f32).collect(),
        DType::BF16 => out.to_vec::<bf16>(backend, stream)?.into_iter().map(bf16::to_f32).collect(),
        _ => out.to_vec::<f32>(backend, stream)?,
    };
    Ok((used, widened, lse.to_vec::<f32>(backend, stream)?))
}

/// Plans and launches.
pub fn launch(backend: &dyn Backend, problem: &AttentionProblem<'_>, stream: &Stream) -> Result<String> {
    let plan = backend.plan(problem)?;
    // SAFETY: the problem's tensors stay allocated until the stream is synchronised, by `with_problem`.
    unsafe { backend.launch(&plan, problem, stream) }?;
    Ok(plan.to_string())
}

/// Runs a case on a backend and on the reference.
pub fn errors(backend: &dyn Backend, case: &Case) -> Result<(Errors, String)> {
    let stream = backend.stream()?;
    let (plan, out, lse) = with_problem(backend, case, &stream, |problem| launch(backend, problem, &stream))?;
    let oracle = Case { algorithm: Algorithm::Auto, partitions: None, ..*case };
    let (expected, _, _) =
        with_problem(&ReferenceBackend::new(), &oracle, &Stream::host(), reference::attention)?;
    Ok((compare(&out, &lse, &expected), plan))
}

fn compare(out: &[f32], lse: &[f32], expected: &reference::ReferenceOutput) -> Errors {
    let mut sums = (0.0, 0.0);
    for (&found, &expected) in out.iter().zip(&expected.out).filter(|(_, expected)| !expected.is_nan()) {
        sums.0 += (f64::from(found) - expected).powi(2);
        sums.1 += expected.powi(2);
    }
    let mut worst = 0.0f64;
    for (&found, &expected) in lse.iter().zip(&expected.lse).filter(|(_, expected)| !expected.is_nan()) {
        let found = f64::from(found);
        let error =
            if found == expected { 0.0 } else { (found - expected).abs() / (1.0 + expected.abs() / 10.0) };
        worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
    }
    Errors { relative_rms: (sums.0 / sums.1.max(1e-30)).sqrt(), lse: worst }
}

/// The cases that every GPU must get right.
pub fn cases() -> Vec<(&'static str, Case)> {
    let mut cases = Vec::new();
    for (name, dtype) in [("bf16", DType::BF16), ("f16", DType::F16), ("f32", DType::F32)] {
        cases.push((name, Case::new(dtype)));
        cases.push((name, Case { mask: MaskKind::Causal, ..Case::new(dtype) }));
        cases.push((name, Case { algorithm: Algorithm::Naive, mask: MaskKind::Causal, ..Case::new(dtype) }));
    }
    let base = Case::new(DType::BF16);
    for dims in [
        (8, 8),
        (40, 40),
        (72, 72),
        (80, 80),
        (96, 96),
        (128, 128),
        (160, 160),
        (192, 128),
        (256, 256),
        (64, 256),
    ] {
        cases.push(("head_dim", Case { dims, mask: MaskKind::Causal, ..base }));
        cases.push(("head_dim f32", Case { dims, mask: MaskKind::Causal, ..Case::new(DType::F32) }));
    }
    cases.push(("unaligned rows", Case { dims: (20, 36), ..base }));
    for mask in [
        MaskKind::Window(31, 0),
        MaskKind::Window(5, 7),
        MaskKind::ChunkedCausal(48),
        MaskKind::PrefixLm,
        MaskKind::Document,
        MaskKind::DenseBool,
        MaskKind::DenseFloat,
        MaskKind::NotCausalOrWindow,
        MaskKind::Closure,
    ] {
        cases.push(("mask", Case { mask, ..base }));
        cases.push(("mask, more queries than keys", Case { mask, seqlen: (150, 40), ..base }));
    }
    for score in [ScoreKind::SoftcapAlibi, ScoreKind::Bias] {
        cases.push(("score", Case { score, mask: MaskKind::Causal, sinks: true, ..base }));
    }
    for keys in
        [Keys::Lengths, Keys::Ragged, Keys::Continuous, Keys::Paged(16), Keys::Paged(7), Keys::Paged(64)]
    {
        for (seqlen, partitions) in
            [((100, 150), None), ((1, 1000), None), ((1, 1000), Some(1)), ((3, 700), Some(5))]
        {
            let case =
                Case { keys, seqlen, partitions, mask: MaskKind::Causal, sinks: true, heads: (8, 2), ..base };
            cases.push(("cache", Case { dims: (128, 128), ..case }));
            cases.push(("cache, ragged queries", Case { ragged_q: true, batch: 3, ..case }));
        }
    }
    cases.push(("no keys", Case { seqlen: (5, 0), ..base }));
    cases.push(("no keys but sinks", Case { seqlen: (5, 0), sinks: true, ..base }));
    cases.push(("many partitions", Case { seqlen: (1, 100), partitions: Some(64), ..base }));
    cases
}

/// A GPU, or the reason why a test is skipped.
pub fn gpu() -> std::result::Result<omniflash_cuda::CudaBackend, String> {
    let backends = omniflash_cuda::CudaBackend::discover().map_err(|absent| absent.to_string())?;
    backends.into_iter().next().ok_or_else(|| "no GPU can be used".into())
}

/// A problem on host memory for planning only; gives it to `use_problem`.
pub fn with_host_problem<T>(
    case: &Case,
    use_problem: impl FnOnce(&AttentionProblem<'_>) -> Result<T>,
) -> Result<T> {
    with_problem(&ReferenceBackend::new(), case, &Stream::host(), use_problem).map(|(used, _, _)| used)
}

/// Dense bf16 tensors of zeros without the cost of random data, for timing: gives the problem to `use_problem`.
pub fn with_dense_problem<T>(
    backend: &dyn Backend,
    (batch, seqlen, heads, dim): (usize, (usize, usize), (usize, usize), usize),
    options: &AttentionOptions<'_>,
    stream: &Stream,
    use_problem: impl FnOnce(&AttentionProblem<'_>) -> Result<T>,
) -> Result<T> {
    let mut random = ChaCha8Rng::seed_from_u64(9);
    // A pattern long enough that no tile repeats, without a draw for every element.
    let pattern: Vec<bf16> =
        (0..65_521).map(|_| bf16::from_f32(StandardNormal.sample(&mut random))).collect();
    let tensor = |shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let data: Vec<bf16> = pattern.iter().copied().cycle().take(count).collect();
        Tensor::from_slice(backend, &data, shape, stream)
    };
    let q = tensor(&[batch, seqlen.0, heads.0, dim])?;
    let (k, v) = (tensor(&[batch, seqlen.1, heads.1, dim])?, tensor(&[batch, seqlen.1, heads.1, dim])?);
    let mut out = Tensor::zeros(backend, DType::BF16, q.shape(), stream)?;
    let view: TensorMut<'_> = out.view_mut();
    let problem = AttentionProblem::new(
        Query::padded(q.view()),
        KvCache::dense(k.view(), v.view()),
        view,
        None,
        options,
    )?;
    let used = use_problem(&problem);
    backend.synchronize(stream).and(used)
}

/// Whether an error says that no kernel can be had here, which is no fault of a kernel.
pub fn is_missing_kernel(error: &Error) -> bool {
    matches!(error, Error::NoKernel { .. })
}
