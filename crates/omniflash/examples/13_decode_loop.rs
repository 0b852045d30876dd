//! Generation over a paged cache: every step appends a key and a value and attends to all before it. On a GPU one
//! captured graph does every step, while lengths, pages and rows change in memory; elsewhere the same calls run on
//! the CPU.
#![allow(clippy::print_stdout)]

use omniflash::{
    AppendAt, AttentionOptions, Backend, Buffer, DType, KvCache, KvCacheMut, Layout, Mask, NewKv, Query,
    Result, Stream, Tensor, TensorMut, TensorRef, attention, attention_on_stream, kv_append,
    kv_append_on_stream,
};

const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const DIM: usize = 64;
const PAGE_SIZE: usize = 16;
const PAGES: usize = 12;
const MAX_PAGES: usize = 5;
const STEPS: usize = 40;
const VOCABULARY: usize = 50;
/// Tokens of the two prompts.
const PROMPTS: [&[usize]; 2] = [&[7, 31, 2], &[11, 3, 5, 23, 17, 42, 1, 8, 29]];

/// What a "model" makes of a token: numbers that depend on it alone.
fn embed(token: usize, salt: f32, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((token * 37 + 11) as f32 * 0.13 * (i + 1) as f32 + salt).sin()).collect()
}

/// The token whose embedding is most like the attention's output.
fn next_token(out: &[f32]) -> usize {
    let score = |token| embed(token, 3.0, out.len()).iter().zip(out).map(|(a, b)| a * b).sum::<f32>();
    (0..VOCABULARY).max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap_or(0)
}

/// The memory that a step reads and writes, at addresses that stay.
struct Memory {
    q: Buffer,
    new_k: Buffer,
    new_v: Buffer,
    pages_k: Buffer,
    pages_v: Buffer,
    table: Buffer,
    lengths: Buffer,
    out: Buffer,
}

impl Memory {
    fn new(backend: &dyn Backend, stream: &Stream) -> Result<Self> {
        let batch = PROMPTS.len();
        let floats = |count: usize| backend.alloc(4 * count, stream);
        let page_floats = PAGE_SIZE * KV_HEADS * DIM;
        let mut memory = Memory {
            q: floats(batch * HEADS * DIM)?,
            new_k: floats(batch * KV_HEADS * DIM)?,
            new_v: floats(batch * KV_HEADS * DIM)?,
            pages_k: floats(PAGES * page_floats)?,
            pages_v: floats(PAGES * page_floats)?,
            table: floats(batch * MAX_PAGES)?,
            lengths: floats(batch)?,
            out: floats(batch * HEADS * DIM)?,
        };
        // Pages in no particular order; those that no sequence has yet may hold anything.
        let nothing = bytes_of(&vec![f32::NAN; PAGES * page_floats]);
        backend.copy_to_device(&nothing, &mut memory.pages_k, stream)?;
        backend.copy_to_device(&nothing, &mut memory.pages_v, stream)?;
        let table: Vec<u8> =
            [5i32, 2, 7, 0, 9, 11, 3, 8, 1, 4].iter().flat_map(|page| page.to_ne_bytes()).collect();
        backend.copy_to_device(&table, &mut memory.table, stream)?;
        Ok(memory)
    }

    /// Enqueues one step: the new rows to the ends of their sequences, then attention to all that is there.
    ///
    /// # Safety
    /// - The memory is not touched until the stream has passed the step.
    unsafe fn enqueue_step(&mut self, backend: &dyn Backend, stream: &Stream) -> Result<()> {
        let batch = PROMPTS.len();
        let floats = |shape: &[usize]| Layout::contiguous(shape);
        let page_shape = [PAGES, PAGE_SIZE, KV_HEADS, DIM];
        let row = floats(&[batch, 1, KV_HEADS, DIM])?;
        let lengths = TensorRef::from_buffer(&self.lengths, DType::I32, floats(&[batch])?)?;
        let page_table = TensorRef::from_buffer(&self.table, DType::I32, floats(&[batch, MAX_PAGES])?)?;
        let new = NewKv::padded(
            TensorRef::from_buffer(&self.new_k, DType::F32, row.clone())?,
            TensorRef::from_buffer(&self.new_v, DType::F32, row)?,
        );
        let cache = KvCacheMut::Paged {
            k: TensorMut::from_buffer(&mut self.pages_k, DType::F32, floats(&page_shape)?)?,
            v: TensorMut::from_buffer(&mut self.pages_v, DType::F32, floats(&page_shape)?)?,
            page_table: page_table.clone(),
        };
        // SAFETY: the caller keeps the memory, and the stream keeps the order of the two.
        unsafe { kv_append_on_stream(backend, new, cache, AppendAt::End(lengths.clone()), stream) }?;
        let heads = floats(&[batch, 1, HEADS, DIM])?;
        let kv = KvCache::Paged {
            k: TensorRef::from_buffer(&self.pages_k, DType::F32, floats(&page_shape)?)?,
            v: TensorRef::from_buffer(&self.pages_v, DType::F32, floats(&page_shape)?)?,
            page_table,
            lengths,
            max_seqlen: None,
        };
        let q = Query::padded(TensorRef::from_buffer(&self.q, DType::F32, heads.clone())?);
        let out = TensorMut::from_buffer(&mut self.out, DType::F32, heads)?;
        let options = AttentionOptions::new().mask(Mask::Causal);
        // SAFETY: as above.
        unsafe { attention_on_stream(backend, q, kv, out, None, &options, stream) }
    }

    /// Writes the prompts' keys and values, all but the last token of each, whose step is the first.
    fn write_prompts(&mut self, backend: &dyn Backend, stream: &Stream) -> Result<()> {
        let row = KV_HEADS * DIM;
        let tokens: Vec<usize> =
            PROMPTS.iter().flat_map(|prompt| &prompt[..prompt.len() - 1]).copied().collect();
        let rows = |salt: f32| tokens.iter().flat_map(|&token| embed(token, salt, row)).collect::<Vec<f32>>();
        let tensor = |data: &[f32]| Tensor::from_slice(backend, data, &[tokens.len(), KV_HEADS, DIM], stream);
        let (k, v) = (tensor(&rows(1.0))?, tensor(&rows(2.0))?);
        let ends = [0i32, PROMPTS[0].len() as i32 - 1, tokens.len() as i32];
        let cu_seqlens = Tensor::from_slice(backend, &ends, &[3], stream)?;
        let starts = Tensor::from_slice(backend, &[0i32; 2], &[2], stream)?;
        let shape = Layout::contiguous(&[PAGES, PAGE_SIZE, KV_HEADS, DIM])?;
        let table = Layout::contiguous(&[PROMPTS.len(), MAX_PAGES])?;
        let cache = KvCacheMut::Paged {
            k: TensorMut::from_buffer(&mut self.pages_k, DType::F32, shape.clone())?,
            v: TensorMut::from_buffer(&mut self.pages_v, DType::F32, shape)?,
            page_table: TensorRef::from_buffer(&self.table, DType::I32, table)?,
        };
        let new = NewKv::Ragged { k: k.view(), v: v.view(), cu_seqlens: cu_seqlens.view(), max_seqlen: None };
        kv_append(backend, new, cache, AppendAt::Start(starts.view()))
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// Generates with `step`, which computes one step over the memory and waits; the tokens and the last output.
fn generate(
    backend: &dyn Backend,
    memory: &mut Memory,
    stream: &Stream,
    mut step: impl FnMut(&mut Memory) -> Result<()>,
) -> Result<(Vec<Vec<usize>>, Vec<f32>)> {
    memory.write_prompts(backend, stream)?;
    let mut tokens: Vec<Vec<usize>> = PROMPTS.iter().map(|prompt| prompt.to_vec()).collect();
    let mut out = Vec::new();
    for _ in 0..STEPS {
        let rows = |salt: f32, count: usize| {
            let last = tokens.iter().map(|tokens| tokens[tokens.len() - 1]);
            bytes_of(&last.flat_map(|token| embed(token, salt, count)).collect::<Vec<f32>>())
        };
        let lengths: Vec<u8> = tokens.iter().flat_map(|tokens| (tokens.len() as i32).to_ne_bytes()).collect();
        backend.copy_to_device(&rows(0.0, HEADS * DIM), &mut memory.q, stream)?;
        backend.copy_to_device(&rows(1.0, KV_HEADS * DIM), &mut memory.new_k, stream)?;
        backend.copy_to_device(&rows(2.0, KV_HEADS * DIM), &mut memory.new_v, stream)?;
        backend.copy_to_device(&lengths, &mut memory.lengths, stream)?;
        step(memory)?;
        let mut bytes = vec![0; 4 * PROMPTS.len() * HEADS * DIM];
        backend.copy_to_host(&memory.out, &mut bytes, stream)?;
        out = bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
        for (tokens, out) in tokens.iter_mut().zip(out.chunks_exact(HEADS * DIM)) {
            tokens.push(next_token(out));
        }
    }
    Ok((tokens, out))
}

/// What the last step must have computed for a sequence: dense attention over all its keys and values.
fn dense_step(backend: &dyn Backend, tokens: &[usize]) -> Result<Vec<f32>> {
    let stream = backend.stream()?;
    let seen = &tokens[..tokens.len() - 1];
    let rows = |salt: f32| seen.iter().flat_map(|&t| embed(t, salt, KV_HEADS * DIM)).collect::<Vec<f32>>();
    let tensor = |data: &[f32], rows: usize, heads: usize| {
        Tensor::from_slice(backend, data, &[1, rows, heads, DIM], &stream)
    };
    let q = tensor(&embed(seen[seen.len() - 1], 0.0, HEADS * DIM), 1, HEADS)?;
    let (k, v) = (tensor(&rows(1.0), seen.len(), KV_HEADS)?, tensor(&rows(2.0), seen.len(), KV_HEADS)?);
    attention(backend, &q, (&k, &v), &AttentionOptions::new())?.out.to_vec(backend, &stream)
}

fn check(backend: &dyn Backend, how: &str, (tokens, out): &(Vec<Vec<usize>>, Vec<f32>)) -> Result<()> {
    for (tokens, out) in tokens.iter().zip(out.chunks_exact(HEADS * DIM)) {
        let error =
            dense_step(backend, tokens)?.iter().zip(out).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{how}: {tokens:?}; the last step and dense attention differ by at most {error:e}");
        assert!(error < 1e-4);
    }
    Ok(())
}

fn on_the_cpu() -> Result<()> {
    let backend = omniflash::Registry::discover().get("cpu")?;
    let stream = backend.stream()?;
    let mut memory = Memory::new(&*backend, &stream)?;
    let generated = generate(&*backend, &mut memory, &stream, |memory| {
        // SAFETY: the CPU is done with the step when the call returns.
        unsafe { memory.enqueue_step(&*backend, &stream) }
    })?;
    check(&*backend, "cpu", &generated)
}

#[cfg(feature = "cuda")]
fn on_a_gpu(backend: &omniflash_cuda::CudaBackend) -> Result<()> {
    let stream = backend.stream()?;
    let mut memory = Memory::new(backend, &stream)?;
    // Once without a graph: it loads the kernels and makes the workspace that the graph will use. Lengths are 0 then,
    // and the row at position -1 is left out.
    // SAFETY: the memory is left alone until the stream is done.
    unsafe { memory.enqueue_step(backend, &stream) }?;
    backend.synchronize(&stream)?;
    // SAFETY: as above, for the replays: each is waited for.
    let graph = backend.capture(&stream, || unsafe { memory.enqueue_step(backend, &stream) })?;
    let generated = generate(backend, &mut memory, &stream, |_| {
        // SAFETY: the memory that the graph uses lives as long as `memory`, and is left alone until the stream is done.
        unsafe { graph.replay(&stream) }?;
        backend.synchronize(&stream)
    })?;
    check(backend, "cuda, one captured graph", &generated)
}

fn main() -> Result<()> {
    #[cfg(feature = "cuda")]
    match omniflash_cuda::CudaBackend::discover() {
        Ok(backends) => {
            if let Some(backend) = backends.first() {
                return on_a_gpu(backend);
            }
        }
        Err(absent) => println!("no graph to capture here: {absent}"),
    }
    on_the_cpu()
}
