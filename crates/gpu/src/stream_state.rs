//! What the backend keeps for each stream: the workspace of split launches, packed masks, and the tables of closures.
//!
//! All of it is used in the order of its stream, so that the next launch may use it again. A launch that must not
//! allocate (its stream is being captured) finds what an earlier launch left, or fails. What a captured launch used
//! is kept as long as the backend, since the graph's replays will use it again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use omniflash_core::lower::{FunctorSpec, TableExtent};
use omniflash_core::{AttentionProblem, Error, KvCache, Mask, MaskFunction, Query, Result, Stream};

use crate::driver::Driver;
use crate::key_map::KeyMap;
use crate::mask_table::{DeviceTable, TableKey};
use crate::memory::DeviceMemory;
use crate::plan::closure_with_query_start;

/// Counters of one page: one for launches, the others for captured launches in turn.
const COUNTERS: usize = 1 << 16;
const COUNTER_BYTES: usize = 4;

/// Workspace grows in steps of this many bytes.
const WORKSPACE_STEP: usize = 1 << 20;
const COUNTERS_STEP: usize = 4 << 10;

/// The states of all streams of a backend.
#[derive(Debug)]
pub(crate) struct StreamStates<D: Driver>(Mutex<Streams<D>>);

#[derive(Debug)]
struct Streams<D: Driver> {
    /// By the driver's id of the stream.
    states: KeyMap<u64, Arc<Mutex<StreamState<D>>>>,
    /// The id last seen of each handle: the driver does not tell it while the stream is captured.
    ids: KeyMap<u64, u64>,
}

impl<D: Driver> Default for StreamStates<D> {
    fn default() -> Self {
        StreamStates(Mutex::new(Streams { states: KeyMap::default(), ids: KeyMap::default() }))
    }
}

/// What is kept for one stream.
#[derive(Debug)]
pub(crate) struct StreamState<D: Driver> {
    workspace: Option<Kept<D>>,
    packed: Option<Kept<D>>,
    /// Of parts of items: zero whenever no launch is under way.
    part_counters: Option<Kept<D>>,
    tables: HashMap<TableKey, (DeviceTable<D>, bool)>,
    counters: Option<Kept<D>>,
    /// Launches captured so far that use a counter.
    captured_counters: usize,
    /// Outgrown, but used by graphs.
    retired: Vec<DeviceMemory<D>>,
}

impl<D: Driver> Default for StreamState<D> {
    fn default() -> Self {
        StreamState {
            workspace: None,
            packed: None,
            part_counters: None,
            tables: HashMap::new(),
            counters: None,
            captured_counters: 0,
            retired: Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Kept<D: Driver> {
    memory: DeviceMemory<D>,
    is_captured: bool,
}

/// One launch's use of what is kept for its stream, on a device that is the thread's.
pub(crate) struct StreamUse<'u, D: Driver> {
    pub(crate) driver: &'u Arc<D>,
    pub(crate) stream: &'u Stream,
    pub(crate) is_capturing: bool,
}

impl<'u, D: Driver> StreamUse<'u, D> {
    /// Asks whether the stream is being captured. Null is the current device's stream.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub(crate) fn new(driver: &'u Arc<D>, stream: &'u Stream, _entered: &'u D::Entered<'_>) -> Result<Self> {
        let is_capturing = driver.is_capturing(stream)?;
        Ok(StreamUse { driver, stream, is_capturing })
    }

    /// Refuses what capture forbids.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the stream is being captured.
    pub(crate) fn check_may_allocate(&self, what: &str) -> Result<()> {
        if !self.is_capturing {
            return Ok(());
        }
        Err(Error::unsupported(
            self.stream.device().to_string(),
            format!("{what} while its stream is captured in a graph"),
            "capture forbids allocations and copies",
            format!("launch the plan once on this stream before capture, or call {}", D::PREPARE),
        ))
    }
}

impl<D: Driver> StreamStates<D> {
    /// The state of a stream. The driver's id tells streams apart whose handles are the same because one was
    /// destroyed.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub(crate) fn of(&self, launch: &StreamUse<'_, D>) -> Result<Arc<Mutex<StreamState<D>>>> {
        let handle = launch.stream.raw();
        let told = if launch.is_capturing { None } else { Some(launch.driver.stream_id(launch.stream)?) };
        let mut streams = lock(&self.0);
        let id = match told {
            Some(id) => {
                streams.ids.insert(handle, id);
                id
            }
            // A stream that was never used before its capture has no state to find: id 0 is no stream's.
            None => streams.ids.get(&handle).copied().unwrap_or(0),
        };
        Ok(Arc::clone(streams.states.entry(id).or_default()))
    }

    /// Forgets a stream that is about to be destroyed; what graphs use stays.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub(crate) fn forget(&self, driver: &D, stream: &Stream) -> Result<()> {
        let _entered = driver.enter()?;
        let id = driver.stream_id(stream)?;
        let Some(state) = lock(&self.0).states.get(&id).cloned() else {
            return Ok(());
        };
        let mut state = lock(&state);
        for kept in [state.workspace.take(), state.packed.take(), state.part_counters.take()] {
            state.give_up_kept(kept, stream);
        }
        for (_, (table, is_captured)) in std::mem::take(&mut state.tables) {
            state.give_up(table.memory, is_captured, stream);
        }
        if let Some(counters) = state.counters.take() {
            state.give_up(counters.memory, counters.is_captured, stream);
        }
        if state.retired.is_empty() {
            lock(&self.0).states.remove(&id);
        }
        Ok(())
    }
}

/// Locks state that a panic elsewhere leaves whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Driver> StreamState<D> {
    /// At least `bytes` of workspace.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it would have to grow under capture, [`Error::OutOfMemory`].
    pub(crate) fn workspace(&mut self, bytes: usize, launch: &StreamUse<'_, D>) -> Result<u64> {
        let size = bytes.next_multiple_of(WORKSPACE_STEP);
        let (address, outgrown) = grown(&mut self.workspace, size, false, launch)?;
        self.give_up_kept(outgrown, launch.stream);
        Ok(address)
    }

    /// At least `bytes` for packed masks.
    ///
    /// # Errors
    /// As [`workspace`](StreamState::workspace).
    pub(crate) fn packed(&mut self, bytes: usize, launch: &StreamUse<'_, D>) -> Result<u64> {
        let size = bytes.next_multiple_of(WORKSPACE_STEP);
        let (address, outgrown) = grown(&mut self.packed, size, false, launch)?;
        self.give_up_kept(outgrown, launch.stream);
        Ok(address)
    }

    /// At least `bytes` of counters of parts: zero now, and left zero by every launch.
    ///
    /// # Errors
    /// As [`workspace`](StreamState::workspace), and [`Error::Driver`].
    pub(crate) fn part_counters(&mut self, bytes: usize, launch: &StreamUse<'_, D>) -> Result<u64> {
        let size = bytes.next_multiple_of(COUNTERS_STEP);
        let (address, outgrown) = grown(&mut self.part_counters, size, true, launch)?;
        self.give_up_kept(outgrown, launch.stream);
        Ok(address)
    }

    fn give_up_kept(&mut self, kept: Option<Kept<D>>, stream: &Stream) {
        if let Some(kept) = kept {
            self.give_up(kept.memory, kept.is_captured, stream);
        }
    }

    /// The address of a u32 that is 0 whenever no launch uses it: launches leave it so. Captured launches, whose replays
    /// may run beside later work of the stream, get others.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none yet under capture, [`Error::OutOfMemory`], [`Error::Driver`].
    pub(crate) fn counter(&mut self, launch: &StreamUse<'_, D>) -> Result<u64> {
        if self.counters.is_none() {
            launch.check_may_allocate("the first launch that counts tiles")?;
            let memory = DeviceMemory::kept(launch.driver, COUNTERS * COUNTER_BYTES, launch.stream)?;
            memory.write(&vec![0; COUNTERS * COUNTER_BYTES], launch.stream)?;
            self.counters = Some(Kept { memory, is_captured: false });
        }
        let counters = self.counters.as_mut().expect("made above when there were none");
        counters.is_captured |= launch.is_capturing;
        let mut index = 0;
        if launch.is_capturing {
            index = 1 + self.captured_counters % (COUNTERS - 1);
            self.captured_counters += 1;
        }
        Ok(counters.memory.address() + (index * COUNTER_BYTES) as u64)
    }

    /// Names the tables of a problem's closures in the functors' parameters; builds and copies those not kept yet.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when one is not kept yet under capture, or when positions are known to the device
    /// only; [`Error::OutOfMemory`], [`Error::Driver`].
    pub(crate) fn set_tables(
        &mut self,
        problem: &AttentionProblem<'_>,
        spec: &mut FunctorSpec<'_>,
        launch: &StreamUse<'_, D>,
    ) -> Result<()> {
        for slot in 0..spec.tables.len() {
            let function = spec.tables[slot].function;
            let extent = table_extent(problem, launch.stream)?;
            let key = TableKey::new(problem.mask(), function, extent);
            if !self.tables.contains_key(&key) {
                launch.check_may_allocate("the first launch with a closure as mask")?;
                self.drop_tables_of_dead_closures(launch.stream);
                let table = DeviceTable::build(function, &extent, launch)?;
                self.tables.insert(key.clone(), (table, false));
            }
            let (table, is_captured) = self.tables.get_mut(&key).expect("inserted above when it was missing");
            *is_captured |= launch.is_capturing;
            spec.set_table(slot, &table.table, table.memory.address());
        }
        Ok(())
    }

    fn drop_tables_of_dead_closures(&mut self, stream: &Stream) {
        let dead: Vec<TableKey> = self.tables.keys().filter(|key| key.is_dead()).cloned().collect();
        for key in dead {
            if let Some((table, is_captured)) = self.tables.remove(&key) {
                self.give_up(table.memory, is_captured, stream);
            }
        }
    }

    /// Frees memory in the order of the stream, unless a graph may use it.
    fn give_up(&mut self, memory: DeviceMemory<D>, is_captured: bool, stream: &Stream) {
        if is_captured {
            self.retired.push(memory);
        } else {
            memory.free_on(stream);
        }
    }
}

/// The address of memory of at least `bytes`, and what it replaced; new memory is zeroed where `is_zero` asks for it.
fn grown<D: Driver>(
    kept: &mut Option<Kept<D>>,
    bytes: usize,
    is_zero: bool,
    launch: &StreamUse<'_, D>,
) -> Result<(u64, Option<Kept<D>>)> {
    let mut outgrown = None;
    if kept.as_ref().is_none_or(|kept| kept.memory.bytes() < bytes) {
        launch.check_may_allocate("a launch that needs more workspace")?;
        let memory = DeviceMemory::kept(launch.driver, bytes, launch.stream)?;
        if is_zero {
            memory.write(&vec![0; bytes], launch.stream)?;
        }
        outgrown = kept.replace(Kept { memory, is_captured: false });
    }
    let kept = kept.as_mut().expect("made above when there was none");
    kept.is_captured |= launch.is_capturing;
    Ok((kept.memory.address(), outgrown))
}

/// The positions that launches of a problem can meet.
fn table_extent(problem: &AttentionProblem<'_>, stream: &Stream) -> Result<TableExtent> {
    if problem.query_start().is_some() {
        return Err(closure_with_query_start(&stream.device().to_string()));
    }
    let shape = problem.shape();
    let (seqlen_q, seqlen_k) = (shape.seqlen_q as i64, shape.seqlen_k as i64);
    let is_exact = matches!(problem.query(), Query::Padded { lengths: None, .. })
        && matches!(problem.kv(), KvCache::Dense { lengths: None, .. });
    Ok(TableExtent {
        batch: shape.batch,
        heads: shape.num_heads,
        q_begin: if is_exact { seqlen_k - seqlen_q } else { -seqlen_q },
        q_end: seqlen_k,
        k_end: seqlen_k,
    })
}

/// Calls `visit` with each closure of a mask.
pub(crate) fn visit_functions<'m, 'a>(
    mask: &'m Mask<'a>,
    visit: &mut dyn FnMut(&'m Arc<dyn MaskFunction + 'a>),
) {
    match mask {
        Mask::And(a, b) | Mask::Or(a, b) => {
            visit_functions(a, visit);
            visit_functions(b, visit);
        }
        Mask::Not(mask) => visit_functions(mask, visit),
        Mask::Custom(function) => visit(function),
        _ => {}
    }
}
