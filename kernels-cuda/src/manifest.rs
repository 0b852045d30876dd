//! The set of kernels that is built ahead of time.

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Error, Result};
use omniflash_device::{TranslationUnit, pack_mask};
use serde::Deserialize;

use crate::{
    Arithmetic, DecodeConfig, ForwardConfig, HOPPER_ARCH, HopperConfig, KV_APPEND_UNITS, NaiveConfig,
    combine, kv_append, verify_page_table,
};

const TEXT: &str = include_str!("../manifest.toml");

/// The architecture whose plans have clusters.
const CLUSTER_ARCH: &str = "sm_90";

/// `manifest.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What everything is built for.
    #[serde(rename = "architecture")]
    pub architectures: Vec<Architecture>,
    forward: Vec<ForwardEntry>,
    decode: Vec<DecodeEntry>,
    hopper: Vec<HopperEntry>,
    naive: Vec<NaiveEntry>,
    combine: DtypesEntry,
    pack_mask: DtypesEntry,
}

/// A target of the compiler.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// `sm_80`, ...
    pub name: String,
    /// The most dynamic shared memory that a block can have, in bytes.
    pub shared_memory: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForwardEntry {
    dtypes: Vec<String>,
    head_dims: Vec<(usize, usize)>,
    masks: Vec<String>,
    score_mods: Vec<String>,
    paged: Vec<bool>,
    #[serde(default = "enabled")]
    vector_loads: bool,
    #[serde(default)]
    arithmetics: Vec<String>,
    #[serde(default)]
    accepted_spill_bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct DecodeEntry {
    dtypes: Vec<String>,
    head_dims: Vec<(usize, usize)>,
    rows: Vec<usize>,
    masks: Vec<String>,
    score_mods: Vec<String>,
    paged: Vec<bool>,
    #[serde(default = "enabled")]
    vector_loads: bool,
    /// How blocks share items; all but the first two for the architecture whose plans have them.
    #[serde(default = "blocks")]
    shares: Vec<Shares>,
    #[serde(default)]
    accepted_spill_bytes: u32,
}

/// Kernels for `sm_90a`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct HopperEntry {
    dtypes: Vec<String>,
    head_dims: Vec<(usize, usize)>,
    masks: Vec<String>,
    score_mods: Vec<String>,
    /// `(block_m, block_n, query_tiles)`.
    tiles: Vec<(usize, usize, usize)>,
    /// Blocks of a cluster.
    #[serde(default = "single")]
    clusters: Vec<usize>,
    #[serde(default = "strided")]
    paged: Vec<bool>,
    #[serde(default)]
    accepted_spill_bytes: u32,
}

fn single() -> Vec<usize> {
    vec![1]
}

fn strided() -> Vec<bool> {
    vec![false]
}

fn enabled() -> bool {
    true
}

fn blocks() -> Vec<Shares> {
    vec![Shares::Blocks]
}

/// The forms of the decode kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Shares {
    /// Blocks of the default, an item cut alike for all.
    Blocks,
    /// Such blocks that go from item to item.
    Items,
    /// Blocks that have a multiprocessor each.
    Wide,
    /// Such blocks in pairs.
    Pairs,
    /// Clusters of 8 blocks, wide ones where they fit, with an item each.
    Clusters,
}

impl Shares {
    /// The default in this form; `None` where it does not fit.
    fn of(self, default: DecodeConfig, shared_memory: usize) -> Option<DecodeConfig> {
        match self {
            Shares::Blocks => Some(default),
            Shares::Items => Some(DecodeConfig { tiles_of_item: DecodeConfig::TILES_OF_ITEM, ..default }),
            Shares::Wide => default.wide(shared_memory),
            Shares::Pairs => DecodeConfig { cluster: 2, ..default }.wide(shared_memory),
            Shares::Clusters => {
                let cluster = DecodeConfig { cluster: 8, whole_items: true, ..default };
                cluster.wide(shared_memory).or_else(|| cluster.narrow(shared_memory))
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct NaiveEntry {
    dtypes: Vec<String>,
    masks: Vec<String>,
    score_mods: Vec<String>,
    paged: Vec<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct DtypesEntry {
    dtypes: Vec<String>,
}

/// One kernel of the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Names it among those of an architecture; a file name.
    pub id: String,
    /// Its source.
    pub unit: TranslationUnit,
    /// Threads of a block.
    pub block_threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_memory_bytes: usize,
    /// The machine instructions of its matrix products, if it computes on tensor cores.
    pub matrix_instruction: Option<&'static str>,
    /// Bytes of spilled registers that are known and do no harm.
    pub accepted_spill_bytes: u32,
}

impl Manifest {
    /// The manifest of this crate.
    ///
    /// # Errors
    /// [`Error::Value`] when it cannot be read.
    pub fn load() -> Result<Self> {
        toml::from_str(TEXT).map_err(|error| Error::value("manifest.toml", error, "a valid manifest"))
    }

    /// All kernels for an architecture.
    ///
    /// # Errors
    /// [`Error::Value`] for a name that is unknown, [`Error::Unsupported`] for a tile that does not fit.
    pub fn instances(&self, architecture: &Architecture) -> Result<Vec<Instance>> {
        let mut instances = Vec::new();
        if architecture.name == HOPPER_ARCH {
            for entry in &self.hopper {
                entry.append(architecture, &mut instances)?;
            }
            return Ok(instances);
        }
        for entry in &self.forward {
            entry.append(architecture, &mut instances)?;
        }
        for entry in &self.decode {
            entry.append(architecture, &mut instances)?;
        }
        for entry in &self.naive {
            for (dtype, mask, score_mod, paged) in
                product(&entry.dtypes, &entry.masks, &entry.score_mods, &entry.paged)
            {
                let config = NaiveConfig { dtype: dtype.parse()?, paged };
                instances.push(Instance {
                    id: format!(
                        "naive-{dtype}-{}-{}",
                        if paged { "paged" } else { "strided" },
                        functor_id(mask, score_mod)
                    ),
                    unit: config.translation_unit(&functors(mask, score_mod)),
                    block_threads: 128,
                    shared_memory_bytes: 0,
                    matrix_instruction: None,
                    accepted_spill_bytes: 0,
                });
            }
        }
        for dtype in &self.combine.dtypes {
            instances.push(Instance {
                id: format!("combine-{dtype}"),
                unit: combine(dtype.parse()?),
                block_threads: 128,
                shared_memory_bytes: 0,
                matrix_instruction: None,
                accepted_spill_bytes: 0,
            });
        }
        for unit_bytes in KV_APPEND_UNITS {
            instances.push(Instance {
                id: format!("kv_append-{unit_bytes}"),
                unit: kv_append(unit_bytes),
                block_threads: 128,
                shared_memory_bytes: 0,
                matrix_instruction: None,
                accepted_spill_bytes: 0,
            });
        }
        for dtype in &self.pack_mask.dtypes {
            let dtype: DType = dtype.parse()?;
            instances.push(Instance {
                id: format!("pack_mask-{dtype}"),
                unit: pack_mask(dtype, 16),
                block_threads: 256,
                shared_memory_bytes: 0,
                matrix_instruction: None,
                accepted_spill_bytes: 0,
            });
        }
        instances.push(Instance {
            id: "verify_page_table".into(),
            unit: verify_page_table(),
            block_threads: 128,
            shared_memory_bytes: 0,
            matrix_instruction: None,
            accepted_spill_bytes: 0,
        });
        Ok(instances)
    }
}

impl ForwardEntry {
    fn append(&self, architecture: &Architecture, instances: &mut Vec<Instance>) -> Result<()> {
        for &(head_dim, value_dim) in &self.head_dims {
            for (dtype, mask, score_mod, paged) in
                product(&self.dtypes, &self.masks, &self.score_mods, &self.paged)
            {
                let dtype: DType = dtype.parse()?;
                let default = ForwardConfig::new(
                    dtype,
                    head_dim,
                    value_dim,
                    architecture.shared_memory,
                    &architecture.name,
                )?;
                for arithmetic in self.arithmetics(default.arithmetic)? {
                    let config =
                        ForwardConfig { paged, arithmetic, vector_loads: self.vector_loads, ..default };
                    // Short and long causal problems have tiles of their own; windows of any width have the same.
                    let limit = architecture.shared_memory;
                    let configs = match mask {
                        "Causal" => [config.for_causal(1, limit), Some(config)],
                        "SlidingWindow" => [config.for_window(limit).or(Some(config)), None],
                        _ => [Some(config), None],
                    };
                    for config in configs.into_iter().flatten() {
                        instances.push(Instance {
                            id: format!("fwd-{config}-{}", functor_id(mask, score_mod)),
                            unit: config.translation_unit(&functors(mask, score_mod)),
                            block_threads: config.block_threads(),
                            shared_memory_bytes: config.shared_memory_bytes(),
                            matrix_instruction: (arithmetic != Arithmetic::Exact).then_some("HMMA"),
                            accepted_spill_bytes: self.accepted_spill_bytes,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    fn arithmetics(&self, default: Arithmetic) -> Result<Vec<Arithmetic>> {
        if self.arithmetics.is_empty() {
            return Ok(vec![default]);
        }
        self.arithmetics
            .iter()
            .map(|name| match name.as_str() {
                "exact" => Ok(Arithmetic::Exact),
                "tf32" => Ok(Arithmetic::Tf32),
                "tf32x3" => Ok(Arithmetic::Tf32x3),
                _ => Err(Error::value("manifest.toml arithmetics", name, "exact, tf32 or tf32x3")),
            })
            .collect()
    }
}

impl DecodeEntry {
    fn append(&self, architecture: &Architecture, instances: &mut Vec<Instance>) -> Result<()> {
        for (&(head_dim, value_dim), &rows) in
            self.head_dims.iter().flat_map(|dims| self.rows.iter().map(move |rows| (dims, rows)))
        {
            for (dtype, mask, score_mod, paged) in
                product(&self.dtypes, &self.masks, &self.score_mods, &self.paged)
            {
                let dtype: DType = dtype.parse()?;
                let default = DecodeConfig::new(dtype, head_dim, value_dim, rows, architecture.shared_memory);
                let Some(default) = default else {
                    let what = format!("{rows} rows of head_dim {head_dim} with value_dim {value_dim}");
                    return Err(Error::value("manifest.toml decode", what, "rows that a tile can have"));
                };
                let default = DecodeConfig { paged, vector_loads: self.vector_loads, ..default };
                // As plans choose there, for all strides and pages but rare ones.
                let is_boxed = architecture.name == CLUSTER_ARCH
                    && [(64, 64), (128, 128)].contains(&(head_dim, value_dim));
                let boxed = default.with_boxes().filter(|_| is_boxed);
                let default =
                    boxed.and_then(|boxed| boxed.narrow(architecture.shared_memory)).unwrap_or(default);
                let is_here = |shares: &Shares| {
                    matches!(shares, Shares::Blocks | Shares::Items) || architecture.name == CLUSTER_ARCH
                };
                for &shares in self.shares.iter().filter(|shares| is_here(shares)) {
                    let boxed = default.with_boxes().filter(|_| {
                        shares == Shares::Clusters && paged && (head_dim, value_dim) == (256, 256)
                    });
                    let default = boxed.unwrap_or(default);
                    let Some(config) = shares.of(default, architecture.shared_memory) else {
                        let what = format!("{shares:?} of {default}");
                        return Err(Error::value("manifest.toml decode", what, "a form that fits"));
                    };
                    instances.push(Instance {
                        id: format!("dec-{config}-{}", functor_id(mask, score_mod)),
                        unit: config.translation_unit(&functors(mask, score_mod)),
                        block_threads: config.block_threads(),
                        shared_memory_bytes: config.shared_memory_bytes(),
                        matrix_instruction: Some("HMMA"),
                        accepted_spill_bytes: self.accepted_spill_bytes,
                    });
                }
            }
        }
        Ok(())
    }
}

impl HopperEntry {
    fn append(&self, architecture: &Architecture, instances: &mut Vec<Instance>) -> Result<()> {
        for &(head_dim, value_dim) in &self.head_dims {
            for (&(block_m, block_n, query_tiles), &cluster) in
                self.tiles.iter().flat_map(|tile| self.clusters.iter().map(move |cluster| (tile, cluster)))
            {
                for (dtype, mask, score_mod, paged) in
                    product(&self.dtypes, &self.masks, &self.score_mods, &self.paged)
                {
                    let config = HopperConfig {
                        dtype: dtype.parse()?,
                        head_dim: head_dim.next_multiple_of(16),
                        value_dim: value_dim.next_multiple_of(16),
                        block_m,
                        block_n,
                        query_tiles,
                        cluster,
                        paged,
                    };
                    config.check(architecture.shared_memory)?;
                    instances.push(Instance {
                        id: format!("fwd-{config}-{}", functor_id(mask, score_mod)),
                        unit: config.translation_unit(&functors(mask, score_mod)),
                        block_threads: config.block_threads(),
                        shared_memory_bytes: config.shared_memory_bytes(),
                        matrix_instruction: Some("HGMMA"),
                        accepted_spill_bytes: self.accepted_spill_bytes,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Functors of a type whose parameters come with a launch.
fn functors(mask: &str, score_mod: &str) -> FunctorSpec<'static> {
    FunctorSpec {
        mask_type: mask.to_owned().into(),
        score_mod_type: score_mod.to_owned().into(),
        sources: Vec::new(),
        parameters: Vec::new(),
        tables: Vec::new(),
        packed: Vec::new(),
    }
}

/// A part of a file name: `And<Causal, TableMask>` is `And.Causal.TableMask`.
fn functor_id(mask: &str, score_mod: &str) -> String {
    format!("{mask}-{score_mod}").replace(", ", ".").replace('<', ".").replace('>', "")
}

fn product<'e>(
    dtypes: &'e [String],
    masks: &'e [String],
    score_mods: &'e [String],
    paged: &'e [bool],
) -> impl Iterator<Item = (&'e str, &'e str, &'e str, bool)> {
    dtypes.iter().flat_map(move |dtype| {
        masks.iter().flat_map(move |mask| {
            score_mods.iter().flat_map(move |score_mod| {
                paged.iter().map(move |&paged| (dtype.as_str(), mask.as_str(), score_mod.as_str(), paged))
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instance_has_an_id_of_its_own_and_fits_its_architecture() {
        let manifest = Manifest::load().unwrap();
        for architecture in &manifest.architectures {
            let instances = manifest.instances(architecture).unwrap();
            let mut ids: Vec<&str> = instances.iter().map(|instance| instance.id.as_str()).collect();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), instances.len());
            for instance in &instances {
                assert!(instance.shared_memory_bytes <= architecture.shared_memory, "{}", instance.id);
                assert!(!instance.unit.source().contains("#include"), "{}", instance.id);
            }
        }
    }
}
