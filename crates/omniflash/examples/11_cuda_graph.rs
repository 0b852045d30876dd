//! A decode step captured once in a CUDA graph and replayed with other lengths: the launch reads lengths and pages on the
//! device, so a server changes them there and replays. Skipped where no NVIDIA GPU is.
#![allow(clippy::print_stdout)]

use omniflash::{
    AttentionOptions, AttentionProblem, Backend, Error, KvCache, Mask, Query, ReferenceBackend, Result,
    Tensor, run,
};
use omniflash_cuda::CudaBackend;

const HEADS: usize = 8;
const DIM: usize = 64;
const PAGE: usize = 16;
const PAGES: usize = 8;

fn main() -> Result<()> {
    let backend = match CudaBackend::discover() {
        Ok(backends) if !backends.is_empty() => backends.into_iter().next(),
        Ok(_) => None,
        Err(absent) => {
            println!("skipped: {}", Error::from(absent));
            return Ok(());
        }
    };
    let Some(backend) = backend else {
        println!("skipped: no GPU can be used");
        return Ok(());
    };
    let stream = backend.stream()?;
    let numbers =
        |count: usize, step: f32| -> Vec<f32> { (0..count).map(|i| (i as f32 * step).sin()).collect() };
    let (q, kv) = (numbers(HEADS * DIM, 0.3), numbers(PAGES * PAGE * HEADS * DIM, 0.7));
    let table: Vec<i32> = (0..PAGES as i32).rev().collect();
    let pool = [PAGES, PAGE, HEADS, DIM];
    let q_on_gpu = Tensor::from_slice(&backend, &q, &[1, 1, HEADS, DIM], &stream)?;
    let kv_on_gpu = Tensor::from_slice(&backend, &kv, &pool, &stream)?;
    let table_on_gpu = Tensor::from_slice(&backend, &table, &[1, PAGES], &stream)?;
    let mut lengths = backend.alloc(4, &stream)?;
    let options = AttentionOptions::new().mask(Mask::Causal);
    let mut out = Tensor::zeros(&backend, q_on_gpu.dtype(), &[1, 1, HEADS, DIM], &stream)?;

    // The longest that a replay may meet decides the plan.
    backend.copy_to_device(&((PAGES * PAGE) as i32).to_le_bytes(), &mut lengths, &stream)?;
    let layout = omniflash::Layout::contiguous(&[1])?;
    let graph = {
        let cache = KvCache::Paged {
            k: kv_on_gpu.view(),
            v: kv_on_gpu.view(),
            page_table: table_on_gpu.view(),
            lengths: omniflash::TensorRef::from_buffer(&lengths, omniflash::DType::I32, layout)?,
            max_seqlen: Some(PAGES * PAGE),
        };
        let problem =
            AttentionProblem::new(Query::padded(q_on_gpu.view()), cache, out.view_mut(), None, &options)?;
        let plan = backend.plan(&problem)?;
        backend.prepare(&plan, &problem, &stream)?;
        // SAFETY: every tensor outlives the graph, and the stream runs one replay after another.
        backend.capture(&stream, || unsafe { backend.launch(&plan, &problem, &stream) })?
    };

    for length in [17, 100, PAGES * PAGE] {
        backend.copy_to_device(&(length as i32).to_le_bytes(), &mut lengths, &stream)?;
        // SAFETY: as above.
        unsafe { graph.replay(&stream) }?;
        backend.synchronize(&stream)?;
        let found = out.to_vec::<f32>(&backend, &stream)?;
        let expected = on_the_host(&q, &kv, &table, length)?;
        let furthest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(furthest < 1e-4, "{length} keys: {furthest}");
        println!("replayed with {length} keys, {furthest:.1e} from the reference");
    }
    Ok(())
}

/// The same step by the reference.
fn on_the_host(q: &[f32], kv: &[f32], table: &[i32], length: usize) -> Result<Vec<f32>> {
    let (backend, stream) = (ReferenceBackend::new(), omniflash::Stream::host());
    let pool = [PAGES, PAGE, HEADS, DIM];
    let lengths = [length as i32];
    let mut out = vec![0.0; q.len()];
    let cache = KvCache::Paged {
        k: omniflash::TensorRef::from_slice(kv, &pool)?,
        v: omniflash::TensorRef::from_slice(kv, &pool)?,
        page_table: omniflash::TensorRef::from_slice(table, &[1, PAGES])?,
        lengths: omniflash::TensorRef::from_slice(&lengths, &[1])?,
        max_seqlen: None,
    };
    let q = Query::padded(omniflash::TensorRef::from_slice(q, &[1, 1, HEADS, DIM])?);
    let out_view = omniflash::TensorMut::from_slice(&mut out, &[1, 1, HEADS, DIM])?;
    let options = AttentionOptions::new().mask(Mask::Causal);
    run(&backend, &AttentionProblem::new(q, cache, out_view, None, &options)?, &stream)?;
    Ok(out)
}
