//! What Hopper's kernels are given beside the parameters of all kernels.

pub(crate) mod tensor_map;

use omniflash_core::{AttentionProblem, Error, Query, Result};
use omniflash_gpu::parameters::Cut;
use omniflash_kernels_cuda::{HopperConfig, HopperParameters};

use crate::driver::{Context, encode_tensor_map};
use tensor_map::{TensorBoxes, key_boxes};

/// The maps of a problem's tensors, and the counter by which blocks take tiles.
///
/// # Errors
/// [`Error::Value`] for a problem that the kernel cannot compute, though its plan was made for such shapes;
/// [`Error::Driver`].
pub(crate) fn hopper_parameters(
    context: &Context,
    tile: &HopperConfig,
    cut: &Cut,
    problem: &AttentionProblem<'_>,
    counter: u64,
) -> Result<HopperParameters> {
    let heads_per_tile = cut.heads_per_tile;
    let boxes = TensorBoxes::new(problem, tile, heads_per_tile)
        .filter(|_| problem.softmax_scale() > 0.0)
        .filter(|_| tile.cluster == 1 || matches!(problem.query(), Query::Padded { lengths: None, .. }))
        .ok_or_else(|| {
            Error::value(
                "plan",
                "made for strides that tensor maps describe, a positive softmax_scale and queries of such lengths",
                "one made for a problem of the same shape, strides, scale and form",
            )
        })?;
    let shape = problem.shape();
    let pairs = shape.batch * (shape.num_heads / heads_per_tile);
    let encode = |what| encode_tensor_map(context, what);
    Ok(HopperParameters {
        q: encode(&boxes.q.0)?,
        k: encode(&boxes.k.0)?,
        v: encode(&boxes.v.0)?,
        out: encode(&boxes.out.0)?,
        counter,
        num_tiles: pairs as u32 * cut.num_row_tiles,
        q_batch_rows: boxes.q.1,
        k_batch_rows: boxes.k.1,
        v_batch_rows: boxes.v.1,
        out_batch_rows: boxes.out.1,
        box_rows: boxes.box_rows,
        ..HopperParameters::default()
    })
}

/// The maps of a problem's keys and values, for the decode kernel with boxes.
///
/// # Errors
/// As [`hopper_parameters`].
pub(crate) fn decode_parameters(
    context: &Context,
    problem: &AttentionProblem<'_>,
) -> Result<HopperParameters> {
    let [k, v] = key_boxes(problem).ok_or_else(|| {
        Error::value(
            "plan",
            "made for strides and pages that tensor maps describe",
            "one made for a problem of the same shape, strides and pages",
        )
    })?;
    Ok(HopperParameters {
        k: encode_tensor_map(context, &k)?,
        v: encode_tensor_map(context, &v)?,
        ..HopperParameters::default()
    })
}
