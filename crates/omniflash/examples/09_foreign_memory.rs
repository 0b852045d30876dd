//! Memory of another library, by its address: any strides, no copies. Here a packed projection
//! [batch, seqlen, 3, heads, head_dim], of which q, k and v are views.
#![allow(clippy::print_stdout)]

use omniflash::{
    AttentionOptions, DType, DeviceId, Layout, Mask, Query, Registry, Result, TensorMut, TensorRef,
    attention_into,
};

fn main() -> Result<()> {
    let backend = Registry::discover().get("cpu")?;
    let (batch, seqlen, heads, head_dim) = (2, 24, 4, 64);
    let packed: Vec<f32> =
        (0..batch * seqlen * 3 * heads * head_dim).map(|i| (i as f32 * 0.37).sin()).collect();
    // All that another library gives: an address, a type, a shape, a device. `DeviceId::Cuda(0)` with a device pointer
    // says the same of a GPU.
    let (address, device) = (packed.as_ptr().expose_provenance() as u64, DeviceId::Cpu);
    let layout = Layout::contiguous(&[batch, seqlen, 3, heads, head_dim])?;
    // SAFETY: `packed` has that many initialised numbers, lives to the end of `main`, and nothing writes it.
    let projection = unsafe { TensorRef::from_raw(address, DType::F32, layout, device) };
    let (q, k, v) = (projection.select(2, 0)?, projection.select(2, 1)?, projection.select(2, 2)?);

    // The output as the next layer wants it: heads before positions in memory.
    let mut out = vec![0.0f32; batch * heads * seqlen * head_dim];
    let written = TensorMut::with_layout(&mut out, Layout::bhsd(batch, seqlen, heads, head_dim)?, 0)?;
    attention_into(
        &*backend,
        Query::padded(q),
        (k, v),
        written,
        None,
        &AttentionOptions::new().mask(Mask::Causal),
    )?;
    // The first query sees the first key only: its output is that key's value, 2 * heads * head_dim numbers after its q.
    assert!((out[0] - packed[2 * heads * head_dim]).abs() < 1e-6);
    println!("{:?} ... of {} numbers, none of them copied on the way in", &out[..4], packed.len());
    Ok(())
}
