//! Configurations worth measuring against the plan's own choice.

use omniflash_core::{Algorithm, AttentionConfig};
use omniflash_gpu::PlanKey;
use omniflash_kernels_cuda::HopperConfig;

use super::hopper::HOPPER;
use crate::probe::DeviceFacts;

/// All tiles that the families are made for; which of them fit a problem is for the choice to say.
pub(crate) fn alternatives(facts: &DeviceFacts, key: &PlanKey) -> Vec<AttentionConfig> {
    let flash2 = AttentionConfig { algorithm: Algorithm::Flash2, ..AttentionConfig::default() };
    let mut configs = vec![flash2];
    if facts.compute_capability == HOPPER && HopperConfig::has_dtype(key.shape.dtype) {
        for (block_m, block_n) in pairs([128, 192, 256], [64, 96, 128, 160, 192]) {
            configs.push(AttentionConfig {
                algorithm: Algorithm::Flash3,
                block_m: Some(block_m),
                block_n: Some(block_n),
                ..flash2
            });
        }
        return configs;
    }
    for (block_m, block_n) in pairs([64, 128], [32, 64, 128]) {
        for stages in [1, 2] {
            configs.push(AttentionConfig {
                block_m: Some(block_m),
                block_n: Some(block_n),
                num_pipeline_stages: Some(stages),
                ..flash2
            });
        }
    }
    configs
}

fn pairs<const A: usize, const B: usize>(
    a: [usize; A],
    b: [usize; B],
) -> impl Iterator<Item = (usize, usize)> {
    a.into_iter().flat_map(move |a| b.into_iter().map(move |b| (a, b)))
}
