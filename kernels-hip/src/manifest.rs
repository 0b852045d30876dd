//! The set of kernels that is built ahead of time.

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Error, Result};
use omniflash_device::{TranslationUnit, pack_mask};
use serde::Deserialize;

use crate::{
    Architecture, ForwardConfig, KV_APPEND_UNITS, NaiveConfig, combine, kv_append, verify_page_table,
};

const TEXT: &str = include_str!("../manifest.toml");

/// `manifest.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    forward: Vec<ForwardEntry>,
    naive: Vec<NaiveEntry>,
    combine: DtypesEntry,
    pack_mask: DtypesEntry,
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
}

fn enabled() -> bool {
    true
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
    /// Whether it computes on the matrix unit.
    pub uses_matrix_cores: bool,
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
    pub fn instances(&self, architecture: Architecture) -> Result<Vec<Instance>> {
        let mut instances = Vec::new();
        for entry in &self.forward {
            entry.append(architecture, &mut instances)?;
        }
        for entry in &self.naive {
            for (dtype, mask, score_mod, paged) in
                product(&entry.dtypes, &entry.masks, &entry.score_mods, &entry.paged)
            {
                let config = NaiveConfig { dtype: dtype.parse()?, paged };
                let layout = if paged { "paged" } else { "strided" };
                let id = format!("naive-{dtype}-{layout}-{}", functor_id(mask, score_mod));
                instances.push(simple(id, config.translation_unit(&functors(mask, score_mod))));
            }
        }
        for dtype in &self.combine.dtypes {
            instances.push(simple(format!("combine-{dtype}"), combine(dtype.parse()?)));
        }
        for unit_bytes in KV_APPEND_UNITS {
            instances.push(simple(format!("kv_append-{unit_bytes}"), kv_append(unit_bytes)));
        }
        for dtype in &self.pack_mask.dtypes {
            let dtype: DType = dtype.parse()?;
            let unit = pack_mask(dtype, 16);
            instances.push(Instance { block_threads: 256, ..simple(format!("pack_mask-{dtype}"), unit) });
        }
        instances.push(simple("verify_page_table".into(), verify_page_table()));
        Ok(instances)
    }
}

impl ForwardEntry {
    fn append(&self, architecture: Architecture, instances: &mut Vec<Instance>) -> Result<()> {
        for &(head_dim, value_dim) in &self.head_dims {
            for (dtype, mask, score_mod, paged) in
                product(&self.dtypes, &self.masks, &self.score_mods, &self.paged)
            {
                let dtype: DType = dtype.parse()?;
                let default =
                    ForwardConfig::new(architecture, dtype, head_dim, value_dim, architecture.name())?;
                let config = ForwardConfig { paged, vector_loads: self.vector_loads, ..default };
                instances.push(Instance {
                    id: format!("fwd-{config}-{}", functor_id(mask, score_mod)),
                    unit: config.translation_unit(&functors(mask, score_mod)),
                    block_threads: config.block_threads(),
                    shared_memory_bytes: config.shared_memory_bytes(),
                    uses_matrix_cores: config.uses_matrix_cores(),
                });
            }
        }
        Ok(())
    }
}

fn simple(id: String, unit: TranslationUnit) -> Instance {
    Instance { id, unit, block_threads: 128, shared_memory_bytes: 0, uses_matrix_cores: false }
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
        for architecture in Architecture::ALL {
            let instances = manifest.instances(architecture).unwrap();
            assert!((20..=40).contains(&instances.len()), "{} kernels for {architecture}", instances.len());
            let mut ids: Vec<&str> = instances.iter().map(|instance| instance.id.as_str()).collect();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), instances.len());
            for instance in &instances {
                assert!(instance.shared_memory_bytes <= architecture.shared_memory(), "{}", instance.id);
                assert!(!instance.unit.source().contains("#include"), "{}", instance.id);
            }
        }
    }
}
