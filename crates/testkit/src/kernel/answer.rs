//! What a kernel leaves, beside the reference.

use omniflash_core::lower::{FunctorSpec, MaskTable, TableExtent};
use omniflash_core::{AttentionOptions, AttentionProblem, DType, Float, TensorMut, TensorRef, reference};
use omniflash_device::parameters::AttentionParameters;
use omniflash_gpu::parameters::{Cut, attention};

use super::case::{Case, Tolerance};
use super::data::Data;
use super::device::KernelDevice;

/// What no kernel computes: whatever it does not write stays this.
pub const UNTOUCHED: f32 = -77.0;

/// What a kernel left, and the reference's answer.
#[derive(Debug)]
pub struct Answer<T> {
    /// The output.
    pub out: Vec<T>,
    lse: Vec<f32>,
    expected: reference::ReferenceOutput,
}

/// Runs what `launch` launches for a case, in tiles of `block_m` rows: it is given the parameters of all kernels, their
/// workspace still to be set, and those of the functors.
pub fn attend<T: Float, D: KernelDevice>(
    mut device: D,
    case: &Case<'_, T>,
    block_m: usize,
    launch: impl FnOnce(&mut D, AttentionParameters, &[u8]),
) -> Answer<T> {
    let data = Data::new(case);
    let (query, kv) = (data.query(case), data.kv(case));
    let shape = AttentionProblem::output_shape(&query, &kv).expect("a case is a valid problem");
    let mut out = vec![T::from_f32(UNTOUCHED); shape.out.iter().product()];
    let mut lse = vec![UNTOUCHED; shape.lse.iter().product()];
    for bytes in data.bytes() {
        device.upload(bytes);
    }
    device.upload(bytemuck::cast_slice(&out));
    device.upload(bytemuck::cast_slice(&lse));
    for tensor in &case.tensors {
        device.upload(tensor);
    }
    let sinks = TensorRef::from_slice(&data.sinks, &[case.heads]).expect("one for each head");
    let mut options = AttentionOptions::new()
        .mask(case.mask.clone())
        .score_mod(case.score_mod.clone())
        .softmax_scale(case.softmax_scale)
        .lse(true);
    if case.sinks {
        options = options.sinks(sinks);
    }
    let outputs = (TensorMut::from_slice(&mut out, &shape.out), TensorMut::from_slice(&mut lse, &shape.lse));
    let (out_view, lse_view) = (outputs.0.expect("made for it"), outputs.1.expect("made for it"));
    let problem = AttentionProblem::new(query, kv, out_view, Some(lse_view), &options)
        .expect("a case is a valid problem");
    let expected = reference::attention(&problem).expect("the reference computes every problem");

    let mut parameters = attention(&problem, &cut(case, block_m));
    device.translate(bytemuck::bytes_of_mut(&mut parameters));
    let mut functors = FunctorSpec::new(&case.mask, &case.score_mod, case.heads, "test")
        .expect("a case's mask and score modification are for kernels");
    device.translate(&mut functors.parameters);
    let extent = TableExtent {
        batch: case.batch,
        heads: case.heads,
        q_begin: -(case.seqlen_q as i64),
        q_end: case.seqlen_k as i64,
        k_end: case.seqlen_k as i64,
    };
    let mut tables = Vec::new();
    for slot in 0..functors.tables.len() {
        let table = MaskTable::build(functors.tables[slot].function, &extent);
        let words = table.data();
        functors.set_table(slot, &table, device.upload(bytemuck::cast_slice(&words)));
        tables.push(words);
    }
    launch(&mut device, parameters, &functors.parameters);
    drop(problem);
    device.download(bytemuck::cast_slice_mut(&mut out));
    device.download(bytemuck::cast_slice_mut(&mut lse));
    Answer { out, lse, expected }
}

fn cut<T>(case: &Case<'_, T>, block_m: usize) -> Cut {
    let heads_per_tile = if case.pack_groups { case.heads / case.kv_heads } else { 1 };
    Cut {
        heads_per_tile,
        num_row_tiles: (case.seqlen_q * heads_per_tile).div_ceil(block_m) as u32,
        section: case.section as usize,
        num_partitions: case.partitions,
        num_workers: 0,
        least_q_len: 0,
    }
}

impl<T: Float> Answer<T> {
    /// Fails unless the kernel was right.
    ///
    /// # Panics
    /// Then.
    pub fn assert_right(&self, case: &Case<'_, T>) {
        let Answer { out, lse, expected } = self;
        let (mut error, mut norm, mut largest) = (0.0f64, 0.0f64, 0.0f64);
        let row_is_written = |i: usize| !expected.out[i].is_nan() || case.bad_values;
        for (i, (found, wanted)) in out.iter().zip(&expected.out).enumerate() {
            let found = f64::from(found.to_f32());
            if wanted.is_finite() {
                assert!(found.is_finite(), "element {i} is {found}, expected {wanted}");
                error += (found - wanted).powi(2);
                norm += wanted.powi(2);
                largest = largest.max((found - wanted).abs());
            } else if !row_is_written(i) {
                assert_eq!(found, f64::from(UNTOUCHED), "element {i} was written");
            } else if found != f64::from(UNTOUCHED) {
                assert!(
                    !found.is_finite() && (found == *wanted || found.is_nan()),
                    "element {i} is {found}, expected {wanted}"
                );
            }
        }
        let relative = (error / norm.max(1e-30)).sqrt();
        let tolerance = match (case.tolerance, T::DTYPE) {
            (Tolerance::Exact, _) => 2e-6,
            (Tolerance::Tf32, _) => 2e-3,
            (Tolerance::OfDtype, DType::F32) => 2e-5,
            (Tolerance::OfDtype, DType::F16) => 6e-4,
            (Tolerance::OfDtype, _) => 4e-3,
        };
        assert!(relative <= tolerance, "relative error {relative:e}, largest {largest:e}");
        let lse_tolerance = if case.tolerance == Tolerance::Tf32 { 3e-2 } else { 1e-4 };
        for (i, (&found, &wanted)) in lse.iter().zip(&expected.lse).enumerate() {
            if wanted.is_nan() {
                assert_eq!(found, UNTOUCHED, "lse {i} was written");
            } else if wanted == f64::NEG_INFINITY {
                assert_eq!(found, f32::NEG_INFINITY, "lse {i}");
            } else {
                let difference = (f64::from(found) - wanted).abs();
                assert!(
                    difference <= lse_tolerance + 1e-5 * wanted.abs(),
                    "lse {i} is {found}, expected {wanted}"
                );
            }
        }
    }
}
