//! Memory of another library: any strides, no copies. Here one packed projection [batch, seqlen, 3, heads, head_dim].
#![allow(clippy::print_stdout)]

use omniflash::{
    AttentionOptions, Layout, Mask, Query, Registry, Result, TensorMut, TensorRef, attention_into,
};

fn main() -> Result<()> {
    let backend = Registry::discover().get("cpu")?;
    let (batch, seqlen, heads, head_dim) = (2, 24, 4, 64);
    let packed: Vec<f32> =
        (0..batch * seqlen * 3 * heads * head_dim).map(|i| (i as f32 * 0.37).sin()).collect();
    let projection = TensorRef::from_slice(&packed, &[batch, seqlen, 3, heads, head_dim])?;
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
    // Memory that is only an address, such as a device pointer of another crate, enters through
    // `unsafe TensorRef::from_raw(address, dtype, layout, device)`, with its duties in the documentation.
    println!("{:?} ...", &out[..4]);
    Ok(())
}
