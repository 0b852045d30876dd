//! The attention kernel's launch and its reference in f64.

use omniflash_hip_emulator::{Device, Dimensions, LaunchError, Module, Target};

use crate::support::{Arguments, download_bf16, download_f32, from_bf16, random_bf16, upload};

const HEAD_DIM: usize = 64;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) is_causal: bool,
}

pub(crate) struct Problem {
    case: Case,
    q: Vec<u16>,
    k: Vec<u16>,
    v: Vec<u16>,
}

impl Problem {
    pub(crate) fn new(case: Case) -> Problem {
        let numbers = |seed, heads, rows| random_bf16(seed, heads * rows * HEAD_DIM);
        Problem {
            case,
            q: numbers(1, case.heads, case.queries),
            k: numbers(2, case.kv_heads, case.keys),
            v: numbers(3, case.kv_heads, case.keys),
        }
    }

    /// Output and log-sum-exp from the kernel; everything it allocated is freed again.
    pub(crate) fn run(
        &self,
        device: &mut Device,
        module: &Module,
    ) -> Result<(Vec<f64>, Vec<f32>), LaunchError> {
        let Case { queries, keys, heads, kv_heads, is_causal } = self.case;
        let (q, k, v) = (upload(device, &self.q), upload(device, &self.k), upload(device, &self.v));
        let out = device.allocate(2 * self.q.len()).unwrap();
        let lse = device.allocate(4 * heads * queries).unwrap();
        let wave = device.target().wave_size();
        let arguments = Arguments::default()
            .pointer(q)
            .pointer(k)
            .pointer(v)
            .pointer(out)
            .pointer(lse)
            .int(queries as i32)
            .int(keys as i32)
            .int((heads / kv_heads) as i32)
            .float(std::f32::consts::LOG2_E / (HEAD_DIM as f32).sqrt())
            .int(i32::from(is_causal));
        let rows_of_block = 4 * wave / 2;
        let grid = [queries.div_ceil(rows_of_block) as u32, heads as u32, 1];
        let result = device.launch(
            module,
            "attention",
            Dimensions::new(grid, [4 * wave as u32, 1, 1]),
            arguments.bytes(),
        );
        let outputs = (download_bf16(device, out, self.q.len()), download_f32(device, lse, heads * queries));
        for address in [q, k, v, out, lse] {
            device.free(address).unwrap();
        }
        result.map(|()| outputs)
    }

    /// The same in f64, key by key.
    pub(crate) fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let Case { queries, keys, heads, kv_heads, is_causal } = self.case;
        let mut out = vec![0.0; self.q.len()];
        let mut lse = vec![0.0; heads * queries];
        let row = |tensor: &[u16], index: usize| -> Vec<f64> {
            tensor[index * HEAD_DIM..][..HEAD_DIM].iter().map(|&bits| from_bf16(bits)).collect()
        };
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            for query in 0..queries {
                let q = row(&self.q, head * queries + query);
                let visible =
                    if is_causal { (query + 1 + keys).saturating_sub(queries).min(keys) } else { keys };
                let scores: Vec<f64> = (0..visible)
                    .map(|key| {
                        let k = row(&self.k, kv_head * keys + key);
                        q.iter().zip(&k).map(|(x, y)| x * y).sum::<f64>() / (HEAD_DIM as f64).sqrt()
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                lse[head * queries + query] = largest + sum.ln();
                for (key, score) in scores.iter().enumerate() {
                    let weight = (score - largest).exp() / sum;
                    let v = row(&self.v, kv_head * keys + key);
                    let target = &mut out[(head * queries + query) * HEAD_DIM..][..HEAD_DIM];
                    target.iter_mut().zip(&v).for_each(|(sum, value)| *sum += weight * value);
                }
            }
        }
        (out, lse)
    }

    /// The largest errors of output and log-sum-exp.
    pub(crate) fn errors(&self, out: &[f64], lse: &[f32]) -> (f64, f64) {
        let (expected_out, expected_lse) = self.reference();
        let largest = |errors: &mut dyn Iterator<Item = f64>| {
            errors.fold(
                0.0,
                |largest: f64, error| if error.is_nan() { f64::INFINITY } else { largest.max(error) },
            )
        };
        let out_error = largest(&mut out.iter().zip(&expected_out).map(|(x, y)| (x - y).abs()));
        let lse_error = largest(&mut lse.iter().zip(&expected_lse).map(|(x, y)| (f64::from(*x) - y).abs()));
        (out_error, lse_error)
    }
}

/// What bf16 rounding of the weights and of the output allows when |v| <= 1.
pub(crate) const OUT_TOLERANCE: f64 = 8e-3;
pub(crate) const LSE_TOLERANCE: f64 = 2e-6;

/// A case small enough for every target that has several workgroups, waves, tiles and a tail.
pub(crate) fn tail_case(target: Target) -> Case {
    let rows_of_block = 2 * target.wave_size();
    Case { queries: rows_of_block + 10, keys: 70, heads: 2, kv_heads: 1, is_causal: true }
}
