//! Times of the steps of a call: what it costs beside its arithmetic, and what the first use of a mask costs.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use omniflash::measure::time_enqueue;
use omniflash::{
    AttentionOptions, AttentionProblem, Backend, DType, DeviceSource, Mask, MaskFunction, Registry, Result,
    Stream, Tensor, run,
};

use super::clock::Samples;

/// Calls enqueued one after another before the host waits.
const CALLS: u32 = 100;

/// Names and times of the steps of one call: one query on one key.
pub(super) fn overhead(backend: &dyn Backend, budget: Duration) -> Result<Vec<(&'static str, Samples)>> {
    let stream = backend.stream()?;
    let mut inputs = Inputs::new(backend, 1, &stream)?;
    let options = AttentionOptions::new().mask(Mask::Causal);
    let mut steps = Vec::new();
    steps.push((
        "overhead_validate",
        Samples::by_host("host clock", budget, || inputs.problem(&options).map(drop))?,
    ));
    let problem = inputs.problem(&options)?;
    steps.push((
        "overhead_plan",
        Samples::by_host("host clock", budget, || backend.plan(&problem).map(drop))?,
    ));
    let mut enqueue = Samples { milliseconds: Vec::new(), method: "host clock, 100 calls, no wait" };
    let end = Instant::now() + budget;
    time_enqueue(backend, &problem, &stream, 1)?;
    while enqueue.milliseconds.len() < 3 || Instant::now() < end {
        let each = time_enqueue(backend, &problem, &stream, CALLS)?;
        enqueue.milliseconds.push(each.as_secs_f64() * 1e3);
    }
    steps.push(("overhead_enqueue", enqueue));
    steps
        .push(("overhead_call", Samples::by_host("host clock", budget, || run(backend, &problem, &stream))?));
    Ok(steps)
}

/// Names and times of planning with a mask that no one has used before: compiled where the backend compiles, then by a
/// new backend as another process would have it, then again by the same.
pub(super) fn first_use(name: &str) -> Result<Vec<(&'static str, Samples)>> {
    const METHOD: &str = "host clock, planning only";
    let mask = Fresh::new();
    let options = AttentionOptions::new().mask(Mask::custom(mask));
    let plan = |backend: &Arc<dyn Backend>| -> Result<f64> {
        let stream = backend.stream()?;
        let mut inputs = Inputs::new(&**backend, 128, &stream)?;
        let problem = inputs.problem(&options)?;
        let start = Instant::now();
        backend.plan(&problem)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let sample = |milliseconds| Samples { milliseconds: vec![milliseconds], method: METHOD };
    let first = plan(&Registry::discover().get(name)?)?;
    let backend = Registry::discover().get(name)?;
    let cached = plan(&backend)?;
    let planned = plan(&backend)?;
    Ok(vec![("jit_first", sample(first)), ("jit_cached", sample(cached)), ("jit_planned", sample(planned))])
}

/// Tensors of one head of 64.
struct Inputs {
    tensors: [Tensor; 3],
    out: Tensor,
}

impl Inputs {
    fn new(backend: &dyn Backend, seqlen: usize, stream: &Stream) -> Result<Self> {
        let shape = [1, seqlen, 1, 64];
        let numbers = vec![half::bf16::from_f32(0.5); seqlen * 64];
        let tensor = || Tensor::from_slice(backend, &numbers, &shape, stream);
        let out = Tensor::zeros(backend, DType::BF16, &shape, stream)?;
        Ok(Inputs { tensors: [tensor()?, tensor()?, tensor()?], out })
    }

    fn problem<'a>(&'a mut self, options: &AttentionOptions<'a>) -> Result<AttentionProblem<'a>> {
        let [q, k, v] = &self.tensors;
        AttentionProblem::new(q.into(), (k, v).into(), self.out.view_mut(), None, options)
    }
}

/// A mask whose source no cache holds.
struct Fresh {
    number: i32,
}

impl Fresh {
    fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Fresh { number: (now.as_nanos() % 1_000_000_007) as i32 }
    }
}

impl MaskFunction for Fresh {
    fn visible(&self, _batch: usize, _head: usize, q: i64, k: i64) -> bool {
        k <= q || k == i64::from(self.number)
    }

    fn device_source(&self) -> Option<DeviceSource> {
        let source = format!(
            "struct Fresh {{ int unused; OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const \
             {{ return at.k <= at.q || at.k == {}; }} }};",
            self.number
        );
        Some(DeviceSource::new("Fresh", source, &0i32))
    }
}
