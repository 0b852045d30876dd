//! What the backend keeps for each stream: the workspace of split launches, and the tables of closures.
//!
//! All of it is used in the order of its stream, so that the next launch may use it again. A launch that must not
//! allocate (its stream is being captured) finds what an earlier launch left, or fails. What a captured launch used
//! is kept as long as the backend, since the graph's replays will use it again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use omniflash_core::lower::{FunctorSpec, TableExtent};
use omniflash_core::{AttentionProblem, Error, KvCache, Mask, MaskFunction, Query, Result, Stream};

use crate::driver::{self, Context, DeviceMemory};
use crate::mask_table::{DeviceTable, TableKey};

/// Workspace grows in steps of this many bytes.
const WORKSPACE_STEP: usize = 1 << 20;
const COUNTERS_STEP: usize = 4 << 10;

/// The states of all streams of a backend.
#[derive(Debug, Default)]
pub(crate) struct StreamStates {
    /// By the driver's id of the stream.
    states: Mutex<HashMap<u64, Arc<Mutex<StreamState>>>>,
    /// The id last seen of each handle: the driver does not tell it while the stream is captured.
    ids: Mutex<HashMap<u64, u64>>,
}

/// What is kept for one stream.
#[derive(Debug, Default)]
pub(crate) struct StreamState {
    workspace: Option<Kept>,
    /// Zero whenever no launch is under way.
    counters: Option<Kept>,
    tables: HashMap<TableKey, (DeviceTable, bool)>,
    /// Outgrown, but used by graphs.
    retired: Vec<DeviceMemory>,
}

#[derive(Debug)]
struct Kept {
    memory: DeviceMemory,
    is_captured: bool,
}

/// One launch's use of what is kept for its stream.
pub(crate) struct StreamUse<'u> {
    pub(crate) context: &'u Arc<Context>,
    pub(crate) stream: &'u Stream,
    pub(crate) is_capturing: bool,
}

impl<'u> StreamUse<'u> {
    /// Asks whether the stream is being captured.
    pub(crate) fn new(context: &'u Arc<Context>, stream: &'u Stream) -> Result<Self> {
        let is_capturing = driver::is_capturing(context, stream)?;
        Ok(StreamUse { context, stream, is_capturing })
    }

    /// Refuses what capture forbids.
    pub(crate) fn check_may_allocate(&self, what: &str) -> Result<()> {
        if !self.is_capturing {
            return Ok(());
        }
        Err(Error::unsupported(
            self.stream.device().to_string(),
            format!("{what} while its stream is captured in a graph"),
            "capture forbids allocations and copies",
            "launch the plan once on this stream before capture, or call CudaBackend::prepare",
        ))
    }
}

impl StreamStates {
    /// The state of a stream. The driver's id tells streams apart whose handles are the same because one was
    /// destroyed.
    pub(crate) fn of(&self, launch: &StreamUse<'_>) -> Result<Arc<Mutex<StreamState>>> {
        let handle = launch.stream.raw();
        let id = if launch.is_capturing {
            // A stream that was never used before its capture has no state to find: id 0 is no stream's.
            lock(&self.ids).get(&handle).copied().unwrap_or(0)
        } else {
            let id = driver::stream_id(launch.context, launch.stream)?;
            lock(&self.ids).insert(handle, id);
            id
        };
        Ok(Arc::clone(lock(&self.states).entry(id).or_default()))
    }

    /// Forgets a stream that is about to be destroyed; what graphs use stays.
    pub(crate) fn forget(&self, context: &Context, stream: &Stream) -> Result<()> {
        let id = driver::stream_id(context, stream)?;
        let Some(state) = lock(&self.states).get(&id).cloned() else {
            return Ok(());
        };
        let mut state = lock(&state);
        let (workspace, counters) = (state.workspace.take(), state.counters.take());
        state.give_up_kept(workspace, stream);
        state.give_up_kept(counters, stream);
        for (_, (table, is_captured)) in std::mem::take(&mut state.tables) {
            state.give_up(table.memory, is_captured, stream);
        }
        if state.retired.is_empty() {
            lock(&self.states).remove(&id);
        }
        Ok(())
    }
}

/// A panic elsewhere leaves no state half changed here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StreamState {
    /// At least `bytes` of workspace.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it would have to grow under capture, [`Error::OutOfMemory`].
    pub(crate) fn workspace(&mut self, bytes: usize, launch: &StreamUse<'_>) -> Result<u64> {
        let (address, outgrown) = grown(&mut self.workspace, bytes.next_multiple_of(WORKSPACE_STEP), launch)?;
        self.give_up_kept(outgrown, launch.stream);
        Ok(address)
    }

    /// At least `bytes` of counters: zero now, and left zero by every launch.
    ///
    /// # Errors
    /// As [`workspace`](StreamState::workspace).
    pub(crate) fn counters(&mut self, bytes: usize, launch: &StreamUse<'_>) -> Result<u64> {
        let (address, outgrown) = grown(&mut self.counters, bytes.next_multiple_of(COUNTERS_STEP), launch)?;
        self.give_up_kept(outgrown, launch.stream);
        Ok(address)
    }

    fn give_up_kept(&mut self, kept: Option<Kept>, stream: &Stream) {
        if let Some(kept) = kept {
            self.give_up(kept.memory, kept.is_captured, stream);
        }
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
        launch: &StreamUse<'_>,
    ) -> Result<()> {
        for slot in 0..spec.tables.len() {
            let function = spec.tables[slot].function;
            let extent = table_extent(problem, launch)?;
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
    fn give_up(&mut self, memory: DeviceMemory, is_captured: bool, stream: &Stream) {
        if is_captured {
            self.retired.push(memory);
        } else {
            memory.free_on(stream);
        }
    }
}

/// The address of memory of at least `bytes`, zeroed when it is new, and what it replaced.
fn grown(kept: &mut Option<Kept>, bytes: usize, launch: &StreamUse<'_>) -> Result<(u64, Option<Kept>)> {
    let mut outgrown = None;
    if kept.as_ref().is_none_or(|kept| kept.memory.bytes() < bytes) {
        launch.check_may_allocate("a launch that needs more workspace")?;
        let memory = DeviceMemory::kept(launch.context, bytes, launch.stream)?;
        memory.zero(launch.stream)?;
        outgrown = kept.replace(Kept { memory, is_captured: false });
    }
    let kept = kept.as_mut().expect("made above when there was none");
    kept.is_captured |= launch.is_capturing;
    Ok((kept.memory.address(), outgrown))
}

/// The positions that launches of a problem can meet.
fn table_extent(problem: &AttentionProblem<'_>, launch: &StreamUse<'_>) -> Result<TableExtent> {
    if problem.query_start().is_some() {
        return Err(Error::unsupported(
            launch.stream.device().to_string(),
            "a closure as mask with query_start",
            "the closure is evaluated on the host, which does not know the positions",
            "give the mask device source (MaskFunction::device_source)",
        ));
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
