//! The kernel for few query rows: which batches take it, and among how many blocks their keys are shared.

use omniflash_core::{AttentionConfig, KvKind, ProblemShape};
use omniflash_gpu::split::configured;
use omniflash_kernels_cuda::{DecodeConfig, RESERVED_SHARED_BYTES};

use super::{Choice, KernelChoice, Request, arithmetic};
use omniflash_core::Result;

/// Fewer tiles of keys than this are not worth a block of their own; the kernel has the same number.
const LEAST_TILES: usize = 2;

/// Tiles of heads that may share a key head: each reads its keys, the later ones from the second-level cache.
const MOST_HEAD_TILES: usize = 2;

/// Blocks of a cluster, for few items and for more. All blocks of a cluster are in one of the device's processor clusters,
/// some of which have fewer multiprocessors than the others: not all of the device can be used.
const CLUSTERS: [usize; 2] = [16, 8];

/// Fewer keys than this are one block's.
const LEAST_CLUSTER_KEYS: usize = 256;

/// The most keys of a sequence that clusters share whole, where four warps fit on a multiprocessor. Clusters leave some
/// multiprocessors idle: with more keys than this all of them are better.
const MOST_CLUSTER_KEYS: usize = 16_384;

/// Ragged batches whose longest sequence is this many times the average have two kinds of sequences.
const MIXED: usize = 3;

/// The choice for a batch all of whose sequences have few rows; `None` for other batches.
///
/// # Errors
/// [`Error::Value`](omniflash_core::Error::Value) for an impossible number of partitions.
pub(crate) fn choose(request: &Request<'_>) -> Result<Option<Choice>> {
    if has_prefill_tiles(request.config) {
        return Ok(None);
    }
    let Some((config, heads_per_tile)) = tile(request, request.shape.seqlen_q) else { return Ok(None) };
    let config = boxed(request, config).unwrap_or(config);
    if let Some(config) = in_clusters(request, config, heads_per_tile) {
        return Ok(Some(Choice {
            kernel: KernelChoice::Decode(config),
            heads_per_tile,
            section: 1,
            num_partitions: config.cluster,
            workers: 0,
            least_q_len: 0,
            short: None,
            reason: format!(
                "decode tile of {} for {} rows, {}, {} items, each shared by a cluster of {} blocks",
                config.block_m,
                request.shape.seqlen_q * heads_per_tile,
                packing(heads_per_tile),
                items(request.shape, heads_per_tile),
                config.cluster
            ),
        }));
    }
    Ok(shared(request, config, heads_per_tile)?.map(|Shares { config, workers, num_partitions, why }| {
        Choice {
            kernel: KernelChoice::Decode(config),
            heads_per_tile,
            section: 1,
            num_partitions,
            workers,
            least_q_len: 0,
            short: None,
            reason: format!(
                "decode tile of {} for {} rows, {}, {why}",
                config.block_m,
                request.shape.seqlen_q * heads_per_tile,
                packing(heads_per_tile)
            ),
        }
    }))
}

/// The choice for the short sequences of a ragged batch that has long ones too, and the fewest rows of a long one;
/// `None` where the lengths differ too little.
///
/// # Errors
/// As [`choose`].
pub(crate) fn choose_short(request: &Request<'_>) -> Result<Option<(Choice, usize)>> {
    let shape = request.shape;
    let is_mixed = shape.ragged_q && MIXED * shape.total_q.div_ceil(shape.batch.max(1)) <= shape.seqlen_q;
    let splits = request.config.num_partitions.is_some_and(|number| number > 1);
    if !is_mixed || splits || has_prefill_tiles(request.config) {
        return Ok(None);
    }
    // One query and its group at least; as many more as the tile then has room for.
    let Some((config, heads_per_tile)) = tile(request, 1) else { return Ok(None) };
    let config = boxed(request, config).unwrap_or(config);
    if heads_per_tile != shape.group_size() {
        return Ok(None);
    }
    let most = config.block_m / heads_per_tile;
    Ok(shared(request, config, heads_per_tile)?.map(|Shares { config, workers, num_partitions, why }| {
        let choice = Choice {
            kernel: KernelChoice::Decode(config),
            heads_per_tile,
            section: 1,
            num_partitions,
            workers,
            least_q_len: 0,
            short: None,
            reason: format!("sequences of up to {most} rows in decode tiles of {}, {why}", config.block_m),
        };
        (choice, most + 1)
    }))
}

/// Whether the caller fixed what only the prefill tiles have, or that warps split rows.
fn has_prefill_tiles(config: &AttentionConfig) -> bool {
    let tiles = [
        config.block_m,
        config.block_n,
        config.block_k,
        config.warp_m,
        config.warp_n,
        config.num_pipeline_stages,
        config.k_group_size,
    ];
    tiles.iter().any(Option::is_some) || config.swizzle.is_some() || config.split_within_block == Some(false)
}

/// The tile for sequences of `seqlen_q` rows, and how many heads it interleaves: the group, or half of it.
fn tile(request: &Request<'_>, seqlen_q: usize) -> Option<(DecodeConfig, usize)> {
    let shape = request.shape;
    let group = shape.group_size();
    (1..=MOST_HEAD_TILES).filter(|tiles| group.is_multiple_of(*tiles)).find_map(|tiles| {
        let heads_per_tile = group / tiles;
        let limit = request.facts.shared_memory_bytes;
        let rows = seqlen_q.checked_mul(heads_per_tile)?;
        let config = DecodeConfig::new(shape.dtype, shape.head_dim, shape.value_dim, rows, limit)?;
        let paged = shape.kv_kind == KvKind::Paged;
        let arithmetic = arithmetic(request);
        let config = DecodeConfig { paged, arithmetic, vector_loads: request.is_aligned, ..config };
        Some((config, heads_per_tile))
    })
}

/// The tile whose keys the copy engine brings, where that was faster than lanes: at 256 columns the addresses of permuted
/// rows do not fit the registers.
fn boxed(request: &Request<'_>, config: DecodeConfig) -> Option<DecodeConfig> {
    let can_box = request.facts.compute_capability.0 == 9 && request.hopper.has_key_boxes;
    let is_measured = [64, 128].contains(&config.head_dim) && config.value_dim == config.head_dim;
    config.with_boxes().filter(|_| can_box && is_measured)?.narrow(request.facts.shared_memory_bytes)
}

/// The tile for few items of few keys, where the time to join parts counts: each item is a cluster's, whose blocks join
/// its parts from their shared memory. `None` where clusters would leave more multiprocessors idle than that gains.
fn in_clusters(request: &Request<'_>, config: DecodeConfig, heads_per_tile: usize) -> Option<DecodeConfig> {
    let (shape, facts) = (request.shape, request.facts);
    let items = items(shape, heads_per_tile);
    if facts.compute_capability.0 != 9
        || request.config.num_partitions.is_some()
        || shape.seqlen_k < LEAST_CLUSTER_KEYS
    {
        return None;
    }
    CLUSTERS.into_iter().find_map(|cluster| {
        let config = DecodeConfig { cluster, whole_items: true, ..config };
        let boxed = boxed_in_clusters(request, config).unwrap_or(config);
        // With one tile a block they gain where boxes bring it, and cost where lanes look pages up.
        let wide = wide(request, boxed).and_then(|wide| {
            let keys_of_tiles = cluster * wide.block_n();
            let least = if wide.boxes { keys_of_tiles } else { 2 * keys_of_tiles };
            (least <= shape.seqlen_k).then(|| wide.with_slots_for(shape.seqlen_k.div_ceil(keys_of_tiles)))
        });
        // Fewer keys come sooner when lanes ask for them.
        let narrow = || DecodeConfig { boxes: false, ..config }.narrow(facts.shared_memory_bytes);
        let config = wide.or_else(narrow)?;
        let fours = (blocks_of_a_multiprocessor(request, config) * config.warps).div_ceil(4);
        // With more items narrow clusters are faster; all but an eighth of the multiprocessors hold them.
        let usable = facts.multiprocessors * if cluster == CLUSTERS[0] { 2 * fours } else { 7 } / 8;
        (items * cluster <= usable && shape.seqlen_k * fours <= MOST_CLUSTER_KEYS).then_some(config)
    })
}

/// The same as [`boxed`] for clusters with whole items, where boxes of 256 columns from pages are faster too.
fn boxed_in_clusters(request: &Request<'_>, config: DecodeConfig) -> Option<DecodeConfig> {
    let can_box = request.facts.compute_capability.0 == 9 && request.hopper.has_key_boxes;
    let is_measured = config.paged && (config.head_dim, config.value_dim) == (256, 256);
    config.with_boxes().filter(|_| can_box && is_measured)
}

/// The tile for blocks that have a multiprocessor each, where such blocks are faster.
fn wide(request: &Request<'_>, config: DecodeConfig) -> Option<DecodeConfig> {
    let is_measured = request.facts.compute_capability.0 == 9 && config.warps < 8;
    config.wide(request.facts.shared_memory_bytes).filter(|_| is_measured)
}

/// Blocks that fit on a multiprocessor at a time, at most the 2 that gain something.
fn blocks_of_a_multiprocessor(request: &Request<'_>, config: DecodeConfig) -> usize {
    let blocks = (request.facts.shared_memory_bytes + RESERVED_SHARED_BYTES)
        / (config.shared_memory_bytes() + RESERVED_SHARED_BYTES);
    blocks.clamp(1, 2)
}

/// Who does what of all items.
struct Shares {
    config: DecodeConfig,
    /// Blocks or clusters that share all keys, or 0.
    workers: usize,
    /// Parts of an item.
    num_partitions: usize,
    why: String,
}

/// How blocks share all items; `None` for more tiles than the kernel counts.
fn shared(request: &Request<'_>, config: DecodeConfig, heads_per_tile: usize) -> Result<Option<Shares>> {
    if let Some(partitions) = configured(request.config)? {
        let (num_partitions, why) = (partitions.number, partitions.reason);
        return Ok(Some(Shares { config, workers: 0, num_partitions, why }));
    }
    let shape = request.shape;
    let items = items(shape, heads_per_tile);
    let tiles_of_item = |config: &DecodeConfig| shape.seqlen_k.div_ceil(config.block_n()).max(1);
    if u32::try_from(items.saturating_mul(tiles_of_item(&config) + DecodeConfig::TILES_OF_ITEM)).is_err() {
        return Ok(None);
    }
    let workers = |config: &DecodeConfig| {
        let slots =
            request.facts.multiprocessors * blocks_of_a_multiprocessor(request, *config) / config.cluster;
        let worth_it = (items * tiles_of_item(config)).div_ceil(LEAST_TILES * config.cluster);
        whole_shares(slots.min(worth_it).max(1), items, tiles_of_item(config))
    };
    // Blocks alone on a multiprocessor gain where none begins an item after another. In pairs they join half as many parts
    // through memory, or none.
    let wide = wide(request, config);
    let pairs =
        wide.and_then(|wide| DecodeConfig { cluster: 2, ..wide }.wide(request.facts.shared_memory_bytes));
    let config = [pairs, wide]
        .into_iter()
        .flatten()
        .find(|config| items > 0 && workers(config).is_multiple_of(items))
        .unwrap_or(config);
    let workers = workers(&config);
    let is_cut_alike = items > 0 && workers.is_multiple_of(items);
    let tiles_of_item = if is_cut_alike { 0 } else { DecodeConfig::TILES_OF_ITEM };
    let config = DecodeConfig { tiles_of_item, ..config };
    let blocks = match config.cluster {
        1 => "blocks".into(),
        cluster => format!("clusters of {cluster} blocks"),
    };
    let why = format!("{workers} {blocks} share the keys of {items} items evenly");
    Ok(Some(Shares { config, workers, num_partitions: workers.div_ceil(items.max(1)), why }))
}

/// A few blocks less where then all items of one length are cut alike, or none is: every block has fewer ends of items
/// to join. Best are parts of equal length, for then no block goes on with another item.
fn whole_shares(workers: usize, items: usize, tiles_of_item: usize) -> usize {
    let items = items.max(1);
    let is_enough = |blocks: usize| 100 * blocks >= 94 * workers;
    let whole = if items <= workers {
        let most = workers / items;
        let parts = (1..=most).rev().take_while(|parts| is_enough(parts * items));
        parts.clone().find(|parts| tiles_of_item.is_multiple_of(*parts)).unwrap_or(most) * items
    } else {
        items / items.div_ceil(workers)
    };
    let is_whole = items.is_multiple_of(whole) || whole.is_multiple_of(items);
    if is_whole && is_enough(whole) { whole } else { workers }
}

/// Pairs of sequence and tile of heads.
fn items(shape: &ProblemShape, heads_per_tile: usize) -> usize {
    shape.batch * (shape.num_heads / heads_per_tile.max(1))
}

/// Words for a plan's reason.
pub(super) fn packing(heads_per_tile: usize) -> String {
    if heads_per_tile > 1 {
        format!("{heads_per_tile} heads packed into a tile")
    } else {
        "one head a tile".into()
    }
}

#[cfg(test)]
mod tests {
    use super::whole_shares;

    #[test]
    fn items_are_cut_into_equal_parts_where_a_few_blocks_less_do_that() {
        // 2048 tiles make 32 equal parts but not 33, 130 tiles 26 parts, which are too few.
        assert_eq!(whole_shares(264, 8, 2048), 256);
        assert_eq!(whole_shares(264, 8, 130), 264);
        assert_eq!(whole_shares(264, 128, 128), 256);
        // Whole items to a block.
        assert_eq!(whole_shares(264, 1024, 16), 256);
        assert_eq!(whole_shares(264, 100, 16), 264);
    }
}
